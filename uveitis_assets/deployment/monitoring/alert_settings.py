"""Settings of alerts: a YAML file, with secrets in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class AlertSettingsError(ValueError):
    """The settings cannot be used; the message names file and field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MailSettings(_Strict):
    """An SMTP server and who writes to whom."""

    host: str = Field(min_length=1)
    port: int = Field(default=587, ge=1, le=65535)
    tls: Literal["starttls", "tls", "none"] = "starttls"
    sender: str = Field(min_length=3)
    to: list[str] = Field(min_length=1)
    user: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _name_both_or_none(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("expected user and password_file, or neither")
        if self.user is not None and self.tls == "none":
            raise ValueError("a password is not sent without TLS; set tls to starttls or tls")
        return self


class WebhookSettings(_Strict):
    """An address that takes JSON; it is often a secret itself, and then stands in a file."""

    url: str | None = None
    url_file: Path | None = None

    @model_validator(mode="after")
    def _name_one(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("expected either url or url_file")
        return self


class AlertSettings(_Strict):
    """What is reported to whom, and how often at most."""

    name: str = "uveitis"
    mail: MailSettings | None = None
    webhook: WebhookSettings | None = None
    repeat_hours: float = Field(default=24.0, gt=0)
    messages_per_hour: int = Field(default=12, ge=1)
    disk_free_gb: float = Field(default=20.0, gt=0)
    silent_after_minutes: float = Field(default=15.0, gt=0)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the YAML file.

        Raises:
            AlertSettingsError: it is missing, no YAML, or a field is wrong.
        """
        try:
            return cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        except FileNotFoundError:
            raise AlertSettingsError(f"{file}: found no such file; see docs/how-to/watch-a-deployment.md") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise AlertSettingsError(f"{file}: it cannot be read: {error}") from None
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
            raise AlertSettingsError(f"{file}: {found}; correct it") from None


def read_secret(file: Path) -> str:
    """The one line of a secret's file.

    Raises:
        AlertSettingsError: it cannot be read or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AlertSettingsError(f"{file}: it cannot be read: {error}") from None
    if not text or "\n" in text:
        raise AlertSettingsError(f"{file}: expected one line, found {len(text.splitlines())}")
    return text
