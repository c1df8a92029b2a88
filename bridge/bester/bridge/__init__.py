"""The bridge: native Bester connections on one side, the fabric on the other."""
