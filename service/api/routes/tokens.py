"""Routes of tokens: users list, rotate and revoke their own; administrators create tokens, and list and revoke all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.api.audit_records import make_recorder
from service.api.dependencies import Admin, Reader, get_settings, get_tokens, note_hidden
from service.api.problems import describe_problems
from service.api.request_bodies import TokenRequest, TokenRotation
from service.api.response_bodies import NewToken, TokenView
from service.api.tokens import choose_lifetime

TokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", description="ID of the token, as `magnet tokens` lists it.")]

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], responses=describe_problems(404))


@router.post("", status_code=201)
def create_token(request: Request, caller: Admin, body: TokenRequest) -> NewToken:
    """Create a token. Only this response shows its secret. For administrators."""
    # A missing lifetime and an explicit null mean different things, and both arrive as None.
    days = choose_lifetime(get_settings(request), body.days, is_default="days" not in body.model_fields_set)
    detail = f"{body.scope} for {body.owner}, " + ("no end" if days is None else f"{days:g} days")
    record = make_recorder(caller, "token.create", detail)
    secret, token = get_tokens(request).create(body.owner, body.scope, days, note=body.note, within=record)
    return NewToken(secret=secret, **asdict(token))


@router.get("")
def list_tokens(request: Request, caller: Reader) -> list[TokenView]:
    """The caller's tokens, without their secrets; for administrators, the tokens of all users."""
    owner = None if caller.has_scope("admin") else caller.owner
    return [TokenView(**asdict(token)) for token in get_tokens(request).list_tokens(owner)]


@router.post("/rotate", status_code=201)
def rotate_token(request: Request, caller: Reader, body: TokenRotation) -> NewToken:
    """Replace the token that this request carries. The old secret stays valid for `grace_s` seconds."""
    record = make_recorder(caller, "token.rotate", f"replaces {caller.token_id}, which ends in {body.grace_s:g} s")
    old = get_tokens(request).get(caller.token_id)
    max_days = get_settings(request).max_token_days
    secret, token = get_tokens(request).rotate(old, body.grace_s, max_days=max_days, within=record)
    return NewToken(secret=secret, **asdict(token))


@router.delete("/{token_id}", status_code=204)
def revoke_token(request: Request, caller: Reader, token_id: TokenId) -> None:
    """Revoke one of the caller's tokens; for administrators, any token. It is refused from the next request on."""
    with note_hidden(request):
        caller.require_owner(get_tokens(request).get(token_id).owner, f"token {token_id}")
    get_tokens(request).revoke(token_id, make_recorder(caller, "token.revoke"))
