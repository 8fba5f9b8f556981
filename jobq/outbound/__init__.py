"""A guarded HTTP client for addresses that users name: probes now, webhooks alike.

It connects only to addresses that ``jobq.net`` allows, checks the peer again once connected, follows no redirect, uses
no proxy, keeps one deadline over the whole exchange and a bound on the body, and times each phase.
``client`` is the door; ``connection`` the sockets, ``http1`` the messages, ``resolver`` the names, ``causes`` the errors.
"""
