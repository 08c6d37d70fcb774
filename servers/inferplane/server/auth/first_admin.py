"""The first administrator: there is no default password, and without one nobody could be granted a role."""

from inferplane.server.auth.identities import Identities, NewUser
from inferplane.server.auth.passwords import Passwords
from inferplane.server.auth.repository import AuthRepository
from inferplane.server.keys import MasterKey
from inferplane.server.names import USER
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

__all__ = ["create_first_admin"]

INSTALLER = Actor("installer")


async def create_first_admin(settings: Settings, username: str, password: str) -> bool:
    """Create `username` with the role `admin` on `*`, unless there is an administrator; whether it was done.

    Raises INVALID_FIELD for a bad name or password. Works on the database directly, so it is for whoever installs:
    `inferplane up` and `inferplane db`.
    """
    identities, new = Identities(Passwords()), NewUser(username, password)
    database = Database(settings, ServiceName.AUTH)
    try:
        units_of_work = UnitOfWorkFactory(database, MasterKey.load(settings.master_key_path))
        password_hash = await identities.hash_password(new)
        async with units_of_work(INSTALLER) as unit:
            store = AuthRepository(unit)
            await store.lock_administration()
            if await store.count_admins():
                return False
            await identities.create_user(store, new, password_hash)
            await identities.grant_role(store, USER.format(username), "admin", "*", INSTALLER.subject)
            await unit.commit()
        return True
    finally:
        await database.close()
