"""Random histories over the real store, under a clock that stands still until a test moves it.

``ground`` keeps what should be and compares it with what is after each step; ``people``, ``flows``, ``schedulers`` and
``hands`` are the rules, ``healing`` the end of each history. ``laws`` are what holds of every state, ``fates`` what
each verb must lead to, written down a second time and in another way than in the product.

One step at a time: races, which need two at once, are not here. Nor are SYNCs, and what lies outside of the store.
"""
