"""MRAMG-Bench: answers from documents with pictures, its rules, judge and table."""
