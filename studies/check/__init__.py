"""`limner check`: is a model read right, and can it be trained on this machine?"""
