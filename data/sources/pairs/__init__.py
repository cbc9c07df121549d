"""Pictures with captions: in folders and in tars."""
