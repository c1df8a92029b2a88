"""Accounts where the configuration says: in the data directory, in a database, or none at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bester.broker.accounts import Accounts
from bester.broker.config import Config
from bester.broker.postgres import require
from bester.broker.users import Logins, OpenAccounts

if TYPE_CHECKING:
    from bester.broker.accounts_postgres import PostgresAccounts


def open_logins(config: Config) -> Logins:
    """Return the logins that `[accounts] auth` names. Raises ConfigError or BesterError."""
    if config.auth == "open":
        return OpenAccounts()
    database = config.store.database
    if database is None:
        return Accounts(config.server.data_dir, serving=True)
    require(database)
    from bester.broker.accounts_postgres import ServedAccounts

    return ServedAccounts(database)


def open_accounts(config: Config) -> Accounts | PostgresAccounts:
    """Return the accounts for changes by the command line. Raises ConfigError or BesterError."""
    database = config.store.database
    if database is None:
        return Accounts(config.server.data_dir)
    require(database)
    from bester.broker.accounts_postgres import PostgresAccounts

    return PostgresAccounts(database)
