"""Icon tales: short English tales about things, each with its icon; for a language model that can write already."""
