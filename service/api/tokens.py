"""Routes of tokens, for administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.api.access import Admin, Tokens
from service.api.problems import documented
from service.api.views import NewToken, TokenRequest, TokenView

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], responses=documented(404))


@router.post("", status_code=201)
def new(request: Request, caller: Admin, body: TokenRequest) -> NewToken:
    """Make a token; its secret is told only now."""
    secret, token = _tokens(request).new(body.owner, body.scope, body.days)
    return NewToken(secret=secret, **asdict(token))


@router.get("")
def listed(request: Request, caller: Admin) -> list[TokenView]:
    """All tokens, without their secrets."""
    return [TokenView(**asdict(token)) for token in _tokens(request).all()]


@router.delete("/{token_id}", status_code=204)
def revoke(request: Request, caller: Admin, token_id: Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]) -> None:
    """End a token at once."""
    _tokens(request).revoke(token_id)


def _tokens(request: Request) -> Tokens:
    tokens: Tokens = request.app.state.tokens
    return tokens
