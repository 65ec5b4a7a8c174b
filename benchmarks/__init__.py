"""Relays side by side: the same servers, certificates and load, one relay after the other."""
