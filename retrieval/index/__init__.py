"""An index of documents with pictures: what is in it, how it is stored, searched and named."""
