"""Before step 0: can the run learn (`preflight`), and which of its prompts teach anything (`difficulty`)."""
