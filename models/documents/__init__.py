"""The noun: an ordered document of texts and pictures, its candidates, and its pages."""
