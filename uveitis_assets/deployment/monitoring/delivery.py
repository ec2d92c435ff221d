"""Delivery of a message by mail and webhook."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.request
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import urlsplit

from uveitis_assets.deployment.monitoring.alert_settings import (
    AlertSettings,
    AlertSettingsError,
    MailSettings,
    WebhookSettings,
    read_secret,
)

_TIMEOUT_S = 20.0


class DeliveryError(RuntimeError):
    """A message reached nobody on one of its ways; the text says which, and never quotes a secret."""


def deliver(settings: AlertSettings, subject: str, text: str) -> list[str]:
    """Send the message on every way that is configured; returns the ways.

    Raises:
        DeliveryError: one or several ways failed; the others were tried all the same.
    """
    used, failed = [], []
    if settings.mail is not None:
        used.append(f"mail to {', '.join(settings.mail.to)}")
        try:
            send_mail(settings.mail, subject, text)
        except (OSError, smtplib.SMTPException, AlertSettingsError) as error:
            failed.append(f"mail by {settings.mail.host}:{settings.mail.port}: {type(error).__name__}: {error}")
    if settings.webhook is not None:
        used.append("webhook")
        try:
            send_webhook(settings.webhook, settings.name, subject, text)
        except (OSError, ValueError) as error:
            # The address may be a secret, and errors of the library may quote it.
            detail = error if isinstance(error, AlertSettingsError) else getattr(error, "code", type(error).__name__)
            failed.append(f"webhook: {detail}")
    if failed:
        raise DeliveryError("; ".join(failed))
    return used


def send_mail(settings: MailSettings, subject: str, text: str) -> None:
    """Send one mail.

    Raises:
        OSError, smtplib.SMTPException: the server is away or refuses.
        AlertSettingsError: the password's file cannot be read.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.sender, ", ".join(settings.to), subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="uveitis-assets.invalid")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    context = ssl.create_default_context()
    if settings.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(settings.host, settings.port, timeout=_TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(settings.host, settings.port, timeout=_TIMEOUT_S)
    with server:
        if settings.tls == "starttls":
            server.starttls(context=context)
        if settings.user is not None and settings.password_file is not None:
            server.login(settings.user, read_secret(settings.password_file))
        server.send_message(message)


def send_webhook(settings: WebhookSettings, name: str, subject: str, text: str) -> None:
    """Post JSON with ``text``, which Slack, Mattermost and Teams' workflows show, and with its parts.

    Raises:
        OSError: nothing answers, or the answer is an error.
        AlertSettingsError: the address cannot be read, or is no HTTP address.
    """
    url = settings.url or (read_secret(settings.url_file) if settings.url_file else "")
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise AlertSettingsError("webhook: expected an address that begins with https:// or http://")
    content = {"text": f"{subject}\n{text}", "deployment": name, "subject": subject, "lines": text.splitlines()}
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, data=json.dumps(content).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        answer.read()
