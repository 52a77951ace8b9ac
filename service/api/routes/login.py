"""Routes of login at an OpenID Connect provider."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request

from service.api.dependencies import get_settings, get_tokens
from service.api.logins import create_login_token
from service.api.oidc import Provider
from service.api.problems import describe_problems
from service.api.request_bodies import Login
from service.api.response_bodies import LoginOffer, NewToken
from service.errors import NotFoundError
from service.settings.service import OidcSettings

router = APIRouter(prefix="/v1/login", tags=["tokens"], responses=describe_problems(404))


@router.get("")
def show_provider(request: Request) -> LoginOffer:
    """The identity provider at which users log in."""
    oidc = _get_oidc(request)
    return LoginOffer(issuer=oidc.issuer, client_id=oidc.client_id)


@router.post("", status_code=201)
def log_in(request: Request, body: Login) -> NewToken:
    """Exchange an ID token of the identity provider for a token of this service. Each ID token is accepted once."""
    oidc, provider = _get_oidc(request), request.app.state.provider
    assert isinstance(provider, Provider)
    identity = provider.identify(body.id_token, body.nonce)
    address = request.client.host if request.client else None
    secret, token = create_login_token(get_tokens(request), identity, get_settings(request), oidc, address)
    return NewToken(secret=secret, **asdict(token))


def _get_oidc(request: Request) -> OidcSettings:
    oidc = get_settings(request).oidc
    if oidc is None:
        raise NotFoundError("this service has no login; ask an administrator for a token")
    return oidc
