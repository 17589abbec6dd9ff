"""Rounds of random faults: workers are killed or paused, connections are cut, then the guarantees are checked.

Run them with ``make chaos ROUNDS=n SEED=s``. The place, the seed and the number of a round reproduce it. ``places``
starts brokers and stores, ``workers`` starts workers, ``faults`` draws the faults, ``run`` runs a round, and
``checks`` checks the guarantees.
"""
