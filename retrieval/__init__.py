"""Retrieval: documents with pictures to an index, and questions to illustrated answers."""
