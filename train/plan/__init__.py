"""Does a run fit the memory?"""
