"""Published data sets, as their authors lay them out: stories told in frames and photos, and pictures of prompts."""
