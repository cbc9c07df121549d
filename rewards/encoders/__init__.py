"""Rewards by pretrained encoders: picture and text, pictures among themselves, text and reference."""
