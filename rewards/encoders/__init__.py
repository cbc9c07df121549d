"""Rewards by pretrained encoders: image and text, pictures among themselves, text and reference."""
