"""Run numbered conformance cases against a handler program or against a server's native side.

The cases are data (TOML files); this package reads them, runs them over real sockets and reports the results. The
package uses no other code of Bester, so that the cases test the wire itself. `bester.cli.conform` is the command.
"""
