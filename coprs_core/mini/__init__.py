"""The miniature: its drawn world, its training, and what is measured in that world.

Who comes for the method or for photos never has to enter this room.
"""
