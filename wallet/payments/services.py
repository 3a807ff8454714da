"""Everything that changes a payment.

Money is moved in one place, :func:`apply_provider_state`, whoever brought the news: a notification, a poll, staff.
No provider is called while a transaction is open.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db.models import F, Sum
from django.utils.translation import gettext as _

from notifications.services import record
from wallet.exceptions import (
    AmountNotPayable,
    BalanceLimitExceeded,
    PaymentMismatch,
    PaymentNotFound,
    PaymentNotPayable,
    PaymentNotRefundable,
    ProviderNotAvailable,
    ProviderRefused,
    ProviderUnavailable,
)
from wallet.models import (
    Account,
    Payment,
    PaymentDispute,
    PaymentEvent,
    PaymentRefund,
    ReceiptSeries,
    Transfer,
)
from wallet.payments import return_urls
from wallet.payments.exchange import cost_of, rate_of, share_of, smallest_unit, znc_for
from wallet.payments.providers import get_provider, mock
from wallet.payments.providers.base import (
    Created,
    DisputeState,
    Notification,
    PaymentProvider,
    ProviderState,
    Told,
    in_digits,
)
from wallet.services.accounts import lock_accounts_of
from wallet.services.ledger import claw_back, credit
from zenzefi.lib import clock
from zenzefi.lib.errors import DomainError
from zenzefi.lib.idempotency import IdempotencyKeyReused, RequestInFlight
from zenzefi.lib.money import MAX_AMOUNT
from zenzefi.lib.transactions import in_transaction, run_in_transaction

logger = logging.getLogger(__name__)

FIRST_POLL = timedelta(seconds=30)
LONGEST_POLL = timedelta(hours=1)
FIRST_RETRY = timedelta(seconds=60)
LONGEST_RETRY = timedelta(hours=6)
#: Providers remember an idempotency key for a day; a refund is not asked for again after that.
KEY_LIFETIME = timedelta(hours=23)
#: Longer than any provider call may take: a request this old that left no page behind has died.
CREATION_GRACE = timedelta(minutes=2)

_FINALITY = {
    PaymentDispute.Outcome.OPEN.value: 0,
    PaymentDispute.Outcome.LOST.value: 1,
    # A bank may give back after all what was lost.
    PaymentDispute.Outcome.WON.value: 2,
}


def start_payment(
    *,
    user: Any,
    return_url: str,
    amount_znc: Decimal | None = None,
    amount: Decimal | None = None,
    currency: str = "RUB",
    provider: str | None = None,
    idempotency_key: str | None = None,
) -> Payment:
    """Agree on a top-up at today's rate and open it at the provider; the customer then pays at ``payment_url``.

    Exactly one of ``amount_znc`` and ``amount`` (in the currency) is given; the other follows from the rate, in our
    favour by less than a minor unit. With an ``idempotency_key`` a repeated call returns the first one's payment.

    Raises :class:`~wallet.exceptions.CurrencyNotAvailable`, :class:`ProviderNotAvailable`, :class:`AmountNotPayable`,
    :class:`BalanceLimitExceeded`, :class:`~wallet.exceptions.ReturnUrlRefused`; :class:`ProviderUnavailable` or
    :class:`ProviderRefused` after having canceled the payment; :class:`IdempotencyKeyReused` and
    :class:`RequestInFlight`.
    """
    return_urls.check(return_url)
    payment = _agree(
        user=user,
        return_url=return_url,
        amount_znc=amount_znc,
        amount=amount,
        currency=currency,
        provider=provider,
        idempotency_key=idempotency_key,
    )
    if payment.payment_url:
        return payment
    try:
        created = get_provider(payment.provider).create(payment)
    except (ProviderUnavailable, ProviderRefused, ProviderNotAvailable):
        _give_up(payment_id=payment.pk)
        raise
    return _opened(payment_id=payment.pk, created=created)


@in_transaction
def _agree(
    *,
    user: Any,
    return_url: str,
    amount_znc: Decimal | None,
    amount: Decimal | None,
    currency: str,
    provider: str | None,
    idempotency_key: str | None,
) -> Payment:
    if (amount_znc is None) == (amount is None):
        raise ValueError("Give either amount_znc or amount.")
    # Callers with the same key wait for each other here.
    [account] = lock_accounts_of(user)
    asked = json.dumps([return_url, str(amount_znc), str(amount), currency, provider])
    request_hash = hashlib.sha256(asked.encode()).digest()
    key_hash = None
    if idempotency_key is not None:
        key_hash = hashlib.sha256(f"{user.pk}:{idempotency_key}".encode()).digest()
        before = Payment.objects.select_related("currency", "user").filter(user=user, idempotency_hash=key_hash).first()
        if before is not None:
            return _repeated(before, request_hash)

    rate = rate_of(currency)
    chosen = _provider_for(rate.currency, provider)
    if amount_znc is not None:
        amount = cost_of(amount_znc, rate)
    else:
        assert amount is not None
        if amount != amount.quantize(smallest_unit(rate.currency)):
            raise AmountNotPayable
        amount_znc = znc_for(amount, rate)
        if amount_znc <= 0:
            raise AmountNotPayable
    pending = Payment.objects.filter(user=user, status=Payment.Status.PENDING).aggregate(sum=Sum("amount_znc"))["sum"]
    if account.balance + (pending or 0) + amount_znc > MAX_AMOUNT:
        # Once paid it could not be credited.
        raise BalanceLimitExceeded
    return Payment.objects.create(
        user=user,
        provider=chosen.name,
        amount_znc=amount_znc,
        amount=amount,
        currency=rate.currency,
        rate_znc_amount=rate.znc_amount,
        rate_currency_amount=rate.currency_amount,
        return_url=return_url,
        idempotency_hash=key_hash,
        request_hash=request_hash,
        poll_at=clock.now() + CREATION_GRACE,
    )


def _repeated(before: Payment, request_hash: bytes) -> Payment:
    if bytes(before.request_hash or b"") != request_hash:
        raise IdempotencyKeyReused
    if not before.payment_url and before.created_at + CREATION_GRACE > clock.now():
        raise RequestInFlight
    return before


def _provider_for(currency: Any, name: str | None) -> PaymentProvider:
    names = [name] if name is not None else settings.PAYMENT_PROVIDERS
    for candidate in names:
        provider = get_provider(candidate)
        if provider.takes(currency):
            return provider
    raise ProviderNotAvailable


@in_transaction
def _opened(*, payment_id: uuid.UUID, created: Created) -> Payment:
    payment = _lock(payment_id)
    # A notification may have been faster and have told the ids, even the payment itself.
    payment.provider_payment_id = payment.provider_payment_id or created.provider_payment_id
    payment.provider_reference = payment.provider_reference or created.reference or None
    payment.payment_url = created.payment_url
    if payment.status == Payment.Status.PENDING:
        payment.poll_at = clock.now() + FIRST_POLL
    payment.save(update_fields=["provider_payment_id", "provider_reference", "payment_url", "poll_at"])
    return payment


@in_transaction
def _give_up(*, payment_id: uuid.UUID) -> None:
    """Cancel a payment whose page nobody was given. The key is free again: the caller may repeat the request."""
    payment = _lock(payment_id)
    if payment.status == Payment.Status.PENDING:
        payment.status = Payment.Status.CANCELED
        payment.canceled_at = clock.now()
        payment.poll_at = None
        payment.idempotency_hash = None
        payment.save(update_fields=["status", "canceled_at", "poll_at", "idempotency_hash"])


def _lock(payment_id: uuid.UUID) -> Payment:
    """Lock a payment's row. **A flow locks the payment first, then the account, then the receipt series.**"""
    payment = (
        Payment.objects.select_related("currency", "user")
        .select_for_update(of=("self",), no_key=True)
        .filter(pk=payment_id)
        .first()
    )
    if payment is None:
        raise PaymentNotFound
    return payment


@in_transaction
def apply_provider_state(*, payment_id: uuid.UUID, state: ProviderState, event_id: int | None = None) -> Payment:
    """Carry out what the provider told about a payment; the one handler for notifications, polls and staff.

    The facts (paid or canceled, refunded so far, disputes) are collected on the payment, and its status and what
    is credited follow from all of them together. So nothing is done twice, and the order does not matter: a refund
    told before the success, or a dispute won before it was opened, end the same. Money that is confirmed after a
    cancellation is credited, once: it is the customer's.
    Refunds and open or lost disputes take their share of the credits back, what is gone becomes ``owed``; a dispute
    that is won gives it back. With ``event_id`` that event is marked as processed in the same transaction.

    Raises :class:`PaymentNotFound`; :class:`PaymentMismatch` when something else was paid than what was agreed;
    :class:`BalanceLimitExceeded`. Nothing is changed by a refusal.
    """
    payment = _lock(payment_id)
    before = payment.status
    payment.provider_payment_id = payment.provider_payment_id or state.provider_payment_id or None
    payment.provider_reference = payment.provider_reference or state.reference or None
    payment.refunded_amount = max(payment.refunded_amount, min(state.refunded, payment.amount))
    for dispute in state.disputes:
        _note_dispute(payment, dispute)

    if state.told is Told.SUCCEEDED and not payment.is_paid:
        _deposit(payment, state)
    elif state.told is Told.CANCELED and payment.status == Payment.Status.PENDING:
        payment.status = Payment.Status.CANCELED
        payment.canceled_at = clock.now()
        payment.poll_at = None
    if payment.is_paid:
        disputed = _settle_reversals(payment)
        payment.poll_at = None
        payment.status = _status_of(payment, disputed)
    payment.save()
    if payment.status != before:
        won = (before, payment.status) == (Payment.Status.DISPUTED, Payment.Status.SUCCEEDED)
        _tell(payment, "payment.dispute_won" if won else f"payment.{payment.status}")
    if event_id is not None:
        PaymentEvent.objects.filter(pk=event_id).update(
            payment=payment, processed_at=clock.now(), outcome=payment.status, retry_at=None
        )
    return payment


def _note_dispute(payment: Payment, told: DisputeState) -> None:
    amount = min(told.amount, payment.amount)
    known, created = PaymentDispute.objects.get_or_create(
        payment=payment, provider_dispute_id=told.id, defaults={"outcome": told.outcome, "amount": amount}
    )
    if not created and _FINALITY[told.outcome] >= _FINALITY[known.outcome]:
        known.outcome, known.amount = told.outcome, amount
        known.save(update_fields=["outcome", "amount", "updated_at"])


def _deposit(payment: Payment, state: ProviderState) -> None:
    if state.amount != payment.amount or state.currency != payment.currency_id:
        logger.error(
            "Payment %s: agreed on %s %s, but %s reports %s %s",
            payment.pk,
            payment.amount,
            payment.currency_id,
            payment.provider,
            state.amount,
            state.currency,
        )
        raise PaymentMismatch
    [account] = lock_accounts_of(payment.user)
    credit(
        account=account,
        counterparty=gateway_account(payment.provider),
        amount=payment.amount_znc,
        kind=Transfer.Kind.DEPOSIT,
        source=source_of(payment.pk),
        description=_("Top-up"),
    )
    payment.succeeded_at = clock.now()
    payment.receipt_number = _next_receipt_number(payment.succeeded_at)


def _next_receipt_number(at: datetime) -> str:
    ReceiptSeries.objects.bulk_create([ReceiptSeries(year=at.year)], ignore_conflicts=True)
    # Locked until the payment is stored: a number that is rolled back is given to the next one.
    series = ReceiptSeries.objects.select_for_update(no_key=True).get(year=at.year)
    series.last_number += 1
    series.save(update_fields=["last_number"])
    return f"{series.year}-{series.last_number:06d}"


def _settle_reversals(payment: Payment) -> Decimal:
    """Take or give back credits until refunds and disputes are met; return what is disputed."""
    disputed = sum(
        payment.disputes.exclude(outcome=PaymentDispute.Outcome.WON).values_list("amount", flat=True), Decimal(0)
    )
    held_back = share_of(payment.amount_znc, payment.refunded_amount + disputed, payment.amount)
    difference = held_back - payment.reversed_znc
    if difference:
        payment.reversals += 1
        posting = claw_back if difference > 0 else credit
        [account] = lock_accounts_of(payment.user)
        posting(
            account=account,
            counterparty=gateway_account(payment.provider),
            amount=abs(difference),
            kind=Transfer.Kind.CHARGEBACK if difference > 0 else Transfer.Kind.CHARGEBACK_REVERSAL,
            source=f"{source_of(payment.pk)}:{payment.reversals}",
            description=_("Payment taken back") if difference > 0 else _("Payment given back"),
        )
        payment.reversed_znc = held_back
    return disputed


def _status_of(payment: Payment, disputed: Decimal) -> str:
    if payment.refunded_amount >= payment.amount:
        return Payment.Status.REFUNDED
    if disputed:
        return Payment.Status.DISPUTED
    return Payment.Status.SUCCEEDED


def _tell(payment: Payment, event: str) -> None:
    balance, owed = Account.objects.values_list("balance", "owed").get(user=payment.user)
    record(
        event,
        payment.user,
        {
            "payment_id": str(payment.pk),
            "provider": payment.provider,
            "amount": str(payment.amount_znc),
            "paid_amount": in_digits(payment.amount, payment.currency),
            "currency": payment.currency_id,
            "receipt_number": payment.receipt_number,
            "balance": str(balance),
            "owed": str(owed),
        },
    )


def source_of(payment_id: uuid.UUID) -> str:
    """Return how postings name the payment they come from."""
    return f"payment:{payment_id}"


def gateway_account(provider: str) -> str:
    """Return the system account of a provider."""
    return f"gateway:{provider}"


def receive_notification(*, provider: str, body: bytes, headers: Mapping[str, str], address: str) -> None:
    """Take a provider's message: authenticate it, store it, carry it out. Doing so again changes nothing.

    Raises :class:`ProviderNotAvailable`, :class:`~wallet.exceptions.InvalidNotification`,
    :class:`~wallet.exceptions.MalformedNotification`, and whatever carrying it out raises; the message is stored by
    then, so it is tried again even when the provider does not repeat it.
    """
    notification = get_provider(provider).authenticate(body=body, headers=headers, address=address)
    event = _store(provider, notification)
    if event.processed_at is None:
        process_event(event_id=event.pk)


def _store(provider: str, notification: Notification, *, payment: Payment | None = None) -> PaymentEvent:
    event, _created = PaymentEvent.objects.get_or_create(
        provider=provider,
        event_id=notification.event_id,
        defaults={
            "kind": notification.kind[:128],
            "payload": notification.payload,
            "payment": payment,
            "retry_at": clock.now() + FIRST_RETRY,
        },
    )
    return event


def process_event(*, event_id: int) -> None:
    """Carry out a stored message; one that was carried out, or is about nothing of ours, is left alone.

    Raises what :func:`apply_provider_state` and the provider raise, after noting it on the event.
    """
    event = PaymentEvent.objects.get(pk=event_id)
    if event.processed_at is not None:
        return
    try:
        finding = get_provider(event.provider).interpret(event.payload)
        if finding is None:
            PaymentEvent.objects.filter(pk=event_id, processed_at=None).update(
                processed_at=clock.now(), outcome="not ours", retry_at=None
            )
        elif finding.conclusive:
            apply_provider_state(payment_id=finding.payment.pk, state=finding.state, event_id=event_id)
        else:
            apply_provider_state(payment_id=finding.payment.pk, state=finding.state)
            PaymentEvent.objects.filter(pk=event_id, processed_at=None).update(
                payment=finding.payment, outcome="not confirmed", retry_at=None, attempts=F("attempts") + 1
            )
    except Exception as exc:
        delay = min(FIRST_RETRY * 2 ** min(event.attempts, 16), LONGEST_RETRY)
        PaymentEvent.objects.filter(pk=event_id, processed_at=None).update(
            attempts=F("attempts") + 1,
            outcome=getattr(exc, "code", type(exc).__name__)[:255],
            # After some days somebody has to look at it.
            retry_at=clock.now() + delay if event.attempts < 20 else None,
        )
        raise


def retry_due_events(*, limit: int = 100) -> int:
    """Carry out the messages that could not be before; return how many were."""
    now = clock.now()
    due = list(
        PaymentEvent.objects.filter(retry_at__lte=now).order_by("retry_at").values_list("pk", "retry_at")[:limit]
    )
    done = 0
    for pk, retry_at in due:
        # Compare and set: of several workers one gets it.
        if not PaymentEvent.objects.filter(pk=pk, retry_at=retry_at).update(retry_at=now + FIRST_RETRY):
            continue
        try:
            process_event(event_id=pk)
            done += 1
        except DomainError as exc:
            logger.warning("Payment event %s not processed: %s", pk, exc.code)
    return done


def ask_provider(*, payment_id: uuid.UUID) -> Payment:
    """Fetch what the provider knows about a payment and carry it out.

    Raises :class:`PaymentNotFound`, :class:`ProviderNotAvailable`, :class:`ProviderUnavailable`,
    :class:`ProviderRefused`, and what :func:`apply_provider_state` raises.
    """
    payment = Payment.objects.select_related("currency", "user").filter(pk=payment_id).first()
    if payment is None:
        raise PaymentNotFound
    state = get_provider(payment.provider).fetch(payment)
    return apply_provider_state(payment_id=payment_id, state=state)


def poll_due_payments(*, limit: int = 100) -> int:
    """Ask the providers about the payments whose time has come; return how many were asked about.

    The intervals double up to an hour. A payment whose creation died before a page was known is canceled.
    """
    now = clock.now()
    due = Payment.objects.filter(poll_at__lte=now).order_by("poll_at")[:limit]
    asked = 0
    for payment in list(due):
        following = now + min(FIRST_POLL * 2 ** min(payment.polls, 16), LONGEST_POLL)
        # Compare and set: of several workers one gets it.
        if not Payment.objects.filter(pk=payment.pk, poll_at=payment.poll_at).update(
            poll_at=following, polls=F("polls") + 1
        ):
            continue
        if payment.provider_payment_id is None:
            _give_up(payment_id=payment.pk)
            continue
        try:
            ask_provider(payment_id=payment.pk)
            asked += 1
        except DomainError as exc:
            logger.warning("Payment %s not settled: %s", payment.pk, exc.code)
    return asked


def refund_payment(*, payment_id: uuid.UUID, reason: str, actor: Any, amount: Decimal | None = None) -> Payment:
    """Pay back an amount (in the payment's currency), or all that is left, and take its credits back.

    Raises :class:`PaymentNotFound`, :class:`PaymentNotRefundable`, :class:`AmountNotPayable`,
    :class:`ProviderRefused`; and :class:`ProviderUnavailable`, when the outcome is unknown: the refund is then
    finished by :func:`resume_refunds`, under the same key, so nothing is paid back twice.
    """
    refund = _request_refund(payment_id=payment_id, reason=reason, actor=actor, amount=amount)
    return carry_out_refund(refund_id=refund.pk)


@in_transaction
def _request_refund(*, payment_id: uuid.UUID, reason: str, actor: Any, amount: Decimal | None) -> PaymentRefund:
    payment = _lock(payment_id)
    left = payment.amount - payment.refunded_amount
    wanted = left if amount is None else amount
    under_way = payment.refunds.filter(status=PaymentRefund.Status.REQUESTED).exists()
    # While a dispute is open the bank holds the money; a refund would pay it twice.
    if payment.status != Payment.Status.SUCCEEDED or under_way or wanted > left:
        raise PaymentNotRefundable
    if wanted <= 0 or wanted != wanted.quantize(smallest_unit(payment.currency)):
        raise AmountNotPayable
    return PaymentRefund.objects.create(payment=payment, amount=wanted, reason=reason, requested_by=actor)


def carry_out_refund(*, refund_id: uuid.UUID) -> Payment:
    """Ask the provider for a refund that was requested. Raises what :func:`refund_payment` raises."""
    refund = PaymentRefund.objects.select_related("payment__currency", "payment__user").get(pk=refund_id)
    payment = refund.payment
    if refund.status != PaymentRefund.Status.REQUESTED:
        return payment
    provider = get_provider(payment.provider)
    try:
        provider_refund_id = provider.refund(payment, refund)
    except ProviderRefused:
        PaymentRefund.objects.filter(pk=refund_id, status=PaymentRefund.Status.REQUESTED).update(
            status=PaymentRefund.Status.REFUSED
        )
        raise
    state = provider.fetch(payment)

    def finish() -> Payment:
        settled = apply_provider_state(payment_id=payment.pk, state=state)
        PaymentRefund.objects.filter(pk=refund_id).update(
            status=PaymentRefund.Status.DONE, provider_refund_id=provider_refund_id
        )
        return settled

    return run_in_transaction(finish)


def resume_refunds(*, limit: int = 50) -> int:
    """Finish the refunds whose outcome stayed unknown; return how many were.

    After :data:`KEY_LIFETIME` asking again could pay twice, so such a refund is left for staff to look at.
    """
    now = clock.now()
    unfinished = PaymentRefund.objects.filter(
        status=PaymentRefund.Status.REQUESTED, created_at__lt=now - CREATION_GRACE
    )
    if given_up := unfinished.filter(created_at__lt=now - KEY_LIFETIME).update(status=PaymentRefund.Status.UNKNOWN):
        logger.error("The outcome of %d refunds is unknown", given_up)
    done = 0
    for pk in list(unfinished.order_by("created_at").values_list("pk", flat=True)[:limit]):
        try:
            carry_out_refund(refund_id=pk)
            done += 1
        except DomainError as exc:
            logger.warning("Refund %s not finished: %s", pk, exc.code)
    return done


@in_transaction
def settle_mock_payment(*, payment_id: uuid.UUID, succeed: bool) -> Payment:
    """Pay or cancel a pending payment of the mock provider.

    Raises :class:`ProviderNotAvailable` unless the mock provider is on, :class:`PaymentNotFound`,
    :class:`PaymentNotPayable` when it is no longer pending, and what :func:`apply_provider_state` raises.
    """
    provider = get_provider(mock.MockProvider.name)
    payment = _lock(payment_id)
    if payment.provider != provider.name:
        raise PaymentNotFound
    if payment.status != Payment.Status.PENDING:
        raise PaymentNotPayable
    kind = mock.SUCCEEDED if succeed else mock.CANCELED
    notification = mock.notification(payment, kind, event_id=f"{payment.pk}:{kind}")
    event = _store(provider.name, notification, payment=payment)
    finding = provider.interpret(event.payload)
    assert finding is not None
    return apply_provider_state(payment_id=payment.pk, state=finding.state, event_id=event.pk)
