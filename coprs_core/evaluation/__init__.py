"""How good a model is: answers to a data set, one line an item, and what they add up to.

protocols: how a mask is counted · rows: one item · run: all of them, resumable · judges: how good a
thought is · report: the figures · page: the same as one HTML file · compare: two runs side by side.
"""
