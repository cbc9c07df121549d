"""The dedicated inserter: GRPO by TRL itself, and scoring by pairs."""
