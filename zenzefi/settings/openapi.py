"""What the OpenAPI document says about the API as a whole."""

from __future__ import annotations

DESCRIPTION = """
Prepaid, time-limited access to a Zenzefi server: users top up a balance in **ZNC**, buy access tokens, and send their
requests through the streaming gateway under `/api/v1/proxy/`.

**Signing in.** `POST /api/v1/auth/login` answers an access token (send it as `Authorization: Bearer ...`; it lives 15
minutes) and a refresh token, which `POST /api/v1/auth/refresh` spends for a new pair. The gateway asks for none of
these but for an access token that was bought: `X-Access-Token`, with the device's own id in `X-Device-ID`.

**Data.** JSON in UTF-8. Amounts are strings with two places (`"18.00"`); requests may also send an integer or a number
with at most two decimals. Times are ISO 8601 in UTC. Ids are UUIDs. Unknown fields are ignored. A trailing slash is
optional everywhere.

**Lists** answer `{"items", "total", "limit", "offset"}` and take `?limit=` (1 to 100) and `?offset=`.

**Errors** answer `{"detail", "code", "request_id"}`; `code` is stable, `detail` is for people, in English or Russian by
`Accept-Language`. Validation adds `"errors": {"field": ["..."]}`. Errors of the gateway itself also carry
`X-Zenzefi-Error`; whatever the Zenzefi server answers passes through as it is. Every answer carries `X-Request-ID`.

**Idempotency.** A POST that moves money takes `Idempotency-Key` (1 to 255 printable characters). The same key with the
same body answers what was answered the first time, for 24 hours; with another body 422; while the first is still being
processed 409. A refused request is not remembered.

**Rate limits** are exact sliding windows: `auth` 5 an hour for each address (register, login, password reset), `api`
100 a minute for each user, `proxy` 1000 a minute for each access token, `gift_claim` 10 an hour for each user and each
address, unless the installation, the account's tier or the token itself sets others. A token may have more limits:
requests at once, quotas, bytes a second, networks. Answers carry `RateLimit-Policy` and `RateLimit`; a refusal is 429
with `Retry-After` in seconds. While a neighbour of ours is down, answers are 503 with `Retry-After`, nothing has
changed, and the request may be repeated.
"""

TAGS = [
    {"name": "Accounts", "description": "Registration, sign-in, one's own account."},
    {"name": "Wallet", "description": "Balance, top-ups, transactions."},
    {"name": "Tokens", "description": "Prices, purchase, use and refund of access tokens."},
    {"name": "Tiers", "description": "How much an account may do a minute, by the month."},
    {"name": "Gifts", "description": "Tokens that were never used, given away by a code."},
    {"name": "Bundles", "description": "Several tokens at a discount."},
    {"name": "Referrals", "description": "Whom one referred, and what it brought."},
    {"name": "Gateway", "description": "The way to the Zenzefi server."},
    {"name": "Health", "description": "For monitors and load balancers. No sign-in, no limits."},
]
