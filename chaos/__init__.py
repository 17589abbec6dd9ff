"""Rounds of random trouble: workers killed and paused, connections cut, and every promise checked after each.

``make chaos ROUNDS=n SEED=s``; a round is repeated by its place, seed and number. ``places`` are brokers and stores,
``crew`` the workers, ``trouble`` what happens to them, ``verdict`` what must hold, ``run`` a round of it all.
"""
