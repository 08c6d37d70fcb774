"""Auth's domain objects as messages."""

from inferplane.auth.v1 import grant_pb2, session_pb2, user_pb2
from inferplane.server.auth.identities import Grant, User
from inferplane.server.auth.sessions import Session
from inferplane.server.auth.tokens import AccessToken
from inferplane.server.names import GRANT, USER
from inferplane.server.timestamps import timestamp

__all__ = ["grant_message", "token_pair", "user_message"]


def user_message(user: User) -> user_pb2.User:
    """A user."""
    return user_pb2.User(name=USER.format(user.username), create_time=timestamp(user.created_at))


def grant_message(grant: Grant) -> grant_pb2.Grant:
    """A grant."""
    return grant_pb2.Grant(
        name=GRANT.format(grant.id),
        subject=grant.subject,
        role=grant.role,
        scope=grant.scope,
        create_time=timestamp(grant.created_at),
        creator=grant.creator,
    )


def token_pair(session: Session, token: AccessToken) -> session_pb2.TokenPair:
    """A session's tokens."""
    return session_pb2.TokenPair(
        access_token=token.text,
        access_token_expire_time=timestamp(token.expires_at),
        refresh_token=session.refresh_token,
        refresh_token_expire_time=timestamp(session.expires_at),
    )
