"""What is sealed opens for whom it is meant, as what it was sealed as, and for nobody else."""

import base64
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from contracts import AddExchange, Refusal, new_key_pair, seal, unseal
from contracts.base import decode
from contracts.errors import ErrorCode
from contracts.sealing import is_secret_name, key_id_in, key_id_of, public_key_of
from service.config import Settings, SettingsError
from service.vault import NotReadable, Place, Vault

REPOSITORY = Path(__file__).parents[2]
PRIVATE, PUBLIC = new_key_pair()
PLACE = Place("exchange_credentials", 3, 7, "api_key")


def settings(**keys: object) -> Settings:
    urls = {"database_url": "postgresql://unused/x", "rabbitmq_url": "amqp://unused", "redis_url": "redis://unused"}
    return Settings.model_validate({**urls, **keys})


def tampered(text: str) -> str:
    """The same text with one bit of its last byte changed."""
    head, _, tail = text.rpartition(".") if "." in text else text.rpartition(":")
    urlsafe = "." in text
    decode_ = base64.urlsafe_b64decode if urlsafe else base64.b64decode
    raw = bytearray(decode_(tail + "=" * (-len(tail) % 4)))
    raw[-1] ^= 1
    encoded = base64.urlsafe_b64encode(raw).rstrip(b"=") if urlsafe else base64.b64encode(raw)
    return f"{head}{'.' if urlsafe else ':'}{encoded.decode()}"


class TestSeal:
    @given(st.text(min_size=1, max_size=500).filter(lambda text: text.isprintable()))
    def test_gives_what_only_the_private_key_opens(self, secret: str) -> None:
        sealed = seal(secret, PUBLIC, uid=7, field="api_key")

        assert unseal(sealed, PRIVATE, uid=7, field="api_key") == secret
        assert key_id_in(sealed) == key_id_of(PUBLIC) == key_id_of(public_key_of(PRIVATE))

    def test_gives_another_text_each_time(self) -> None:
        assert len({seal("same", PUBLIC, uid=7, field="api_key") for _ in range(50)}) == 50

    @pytest.mark.parametrize(
        ("uid", "field"),
        [pytest.param(8, "api_key", id="another user"), pytest.param(7, "api_secret", id="another field")],
    )
    def test_is_bound_to_user_and_field(self, uid: int, field: str) -> None:
        with pytest.raises(ValueError, match="another user or field"):
            unseal(seal("canary", PUBLIC, uid=7, field="api_key"), PRIVATE, uid=uid, field=field)

    def test_shows_when_it_was_changed(self) -> None:
        with pytest.raises(ValueError, match="damaged"):
            unseal(tampered(seal("canary", PUBLIC, uid=7, field="api_key")), PRIVATE, uid=7, field="api_key")

    def test_is_for_one_key(self) -> None:
        with pytest.raises(ValueError, match="another key"):
            unseal(seal("canary", PUBLIC, uid=7, field="api_key"), new_key_pair()[0], uid=7, field="api_key")

    @pytest.mark.parametrize("secret", ["", "x" * 4_097])
    def test_refuses_what_is_no_secret(self, secret: str) -> None:
        with pytest.raises(ValueError, match="1 to 4096 bytes"):
            seal(secret, PUBLIC, uid=7, field="api_key")

    def test_does_not_say_what_a_wrong_key_looked_like(self) -> None:
        with pytest.raises(ValueError, match="32 bytes") as refused:
            seal("x", "canary" * 4, uid=7, field="api_key")
        assert "canary" not in str(refused.value)


class TestAWire:
    @pytest.mark.parametrize(
        "secret", ["plain", "", "sealed.v1.zz.aa", f"sealed.v2.{key_id_of(PUBLIC)}.{'A' * 90}", "sealed." + "A" * 200]
    )
    def test_takes_no_plain_secret_and_does_not_repeat_it(self, secret: str) -> None:
        body = f'{{"uid": 1, "cat_ex_id": 1, "ex_name": "main", "api_secret": "{secret}"}}'.encode()

        with pytest.raises(Refusal) as refused:
            decode(AddExchange, body)

        assert (refused.value.code, refused.value.field) == (ErrorCode.VALIDATION, "api_secret")
        assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("api_key", "apiKey", "API-SECRET", "new_password", "Passphrase", "f2a", "pwd")),
        *((name, False) for name in ("ex_name", "account", "mail", "symbol", "rate_limit", "keyboard")),
    ],
)
def test_names_of_secrets_are_known(name: str, is_one: bool) -> None:
    assert is_secret_name(name) is is_one


class TestVault:
    def test_gives_back_what_it_took_in_sealed_for_the_asker(self) -> None:
        vault = Vault([PRIVATE], {"a": secrets.token_bytes(32)})
        private, public = new_key_pair()

        stored = vault.take_in(seal("canary", PUBLIC, uid=7, field="api_key"), PLACE)
        given_out = vault.give_out(stored, PLACE, public)

        assert "canary" not in stored
        assert stored.startswith("v1:a:")
        assert unseal(given_out, private, uid=7, field="api_key") == "canary"

    @pytest.mark.parametrize(
        "place",
        [
            pytest.param(PLACE._replace(row=4), id="another row"),
            pytest.param(PLACE._replace(uid=8), id="another owner"),
            pytest.param(PLACE._replace(field="api_secret"), id="another column"),
            pytest.param(PLACE._replace(table="users"), id="another table"),
        ],
    )
    def test_notices_when_a_stored_secret_was_moved(self, place: Place) -> None:
        vault = Vault([PRIVATE], {"a": secrets.token_bytes(32)})
        stored = vault.take_in(seal("canary", PUBLIC, uid=7, field="api_key"), PLACE)

        with pytest.raises(Refusal, match="changed or moved"):
            vault.give_out(stored, place, PUBLIC)

    def test_notices_when_a_stored_secret_was_changed(self) -> None:
        vault = Vault([PRIVATE], {"a": secrets.token_bytes(32)})
        stored = vault.take_in(seal("canary", PUBLIC, uid=7, field="api_key"), PLACE)

        for wrong in (tampered(stored), stored[:-8], "v1:a:AAAA"):
            with pytest.raises(Refusal) as refused:
                vault.give_out(wrong, PLACE, PUBLIC)
            assert refused.value.code is ErrorCode.UNAVAILABLE

    def test_reads_what_older_keys_made(self) -> None:
        old, new = secrets.token_bytes(32), secrets.token_bytes(32)
        older_private, older_public = new_key_pair()
        sealed = seal("canary", older_public, uid=7, field="api_key")
        stored = Vault([older_private], {"old": old}).take_in(sealed, PLACE)
        vault = Vault([PRIVATE, older_private], {"new": new, "old": old})

        renewed = vault.renew(stored, PLACE)

        assert renewed.startswith("v1:new:")
        assert vault.take_in(sealed, PLACE).startswith("v1:new:")
        assert vault.renew(renewed, PLACE) == renewed
        with pytest.raises(NotReadable, match="'old'"):
            Vault([PRIVATE], {"new": new}).renew(stored, PLACE)

    @pytest.mark.parametrize(
        ("vault", "setting"),
        [
            pytest.param(Vault(), "SEALING_KEY_FILE", id="no key at all"),
            pytest.param(Vault([PRIVATE]), "STORAGE_KEYS_FILE", id="no storage key"),
        ],
    )
    def test_without_keys_names_the_setting(self, vault: Vault, setting: str) -> None:
        with pytest.raises(Refusal, match=setting) as refused:
            vault.take_in(seal("canary", PUBLIC, uid=7, field="api_key"), PLACE)
        assert (refused.value.code, refused.value.field) == (ErrorCode.UNAVAILABLE, "api_key")

    def test_refuses_what_is_sealed_for_somebody_else(self) -> None:
        vault = Vault([PRIVATE], {"a": secrets.token_bytes(32)})

        with pytest.raises(Refusal, match="another key") as refused:
            vault.take_in(seal("canary", new_key_pair()[1], uid=7, field="api_key"), PLACE)
        assert refused.value.code is ErrorCode.VALIDATION

    def test_refuses_a_public_key_that_opens_for_everybody(self) -> None:
        vault = Vault([PRIVATE], {"a": secrets.token_bytes(32)})
        stored = vault.take_in(seal("canary", PUBLIC, uid=7, field="api_key"), PLACE)

        with pytest.raises(Refusal) as refused:
            vault.give_out(stored, PLACE, base64.b64encode(bytes(32)).decode())
        assert (refused.value.code, refused.value.field) == (ErrorCode.VALIDATION, "public_key")


class TestKeysOfTheSettings:
    def test_come_from_files_or_the_environment(self, tmp_path: Path) -> None:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        older = base64.b64encode(secrets.token_bytes(32)).decode()
        (tmp_path / "sealing").write_text(f"# of today\n{PRIVATE}\n")
        (tmp_path / "storage").write_text(f"2026:{key}\n2025:{older}\n")

        of_files = Vault.of(settings(sealing_key_file=tmp_path / "sealing", storage_keys_file=tmp_path / "storage"))
        of_values = Vault.of(settings(sealing_key=SecretStr(PRIVATE), storage_keys=f"2026:{key},2025:{older}"))

        assert of_files.public_key == of_values.public_key == PUBLIC
        assert of_files.storage_key_id == of_values.storage_key_id == "2026"

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            pytest.param({"sealing_key": "canary"}, "SEALING_KEY: key 1 must be 32 bytes", id="a short key"),
            pytest.param({"storage_keys": "canary"}, "STORAGE_KEYS: entry 1 must be id:key", id="a key without id"),
            pytest.param({"storage_keys": f"a:{PRIVATE},a:{PRIVATE}"}, "entry 2 .* id of its own", id="an id twice"),
            pytest.param({"sealing_key_file": "/nowhere"}, "SEALING_KEY_FILE: cannot be read", id="no such file"),
            pytest.param({"storage_keys_file": "/dev/null"}, "STORAGE_KEYS_FILE: holds no key", id="an empty file"),
            pytest.param(
                {"storage_keys_file": "/x", "storage_keys": f"a:{PRIVATE}"}, "set one of them", id="both ways at once"
            ),
        ],
    )
    def test_are_named_when_they_are_wrong(self, keys: dict[str, str], problem: str) -> None:
        with pytest.raises(SettingsError, match=problem) as error:
            Vault.of(settings(**keys))
        assert "canary" not in str(error.value)
        assert PRIVATE not in str(error.value)


def test_messages_need_no_cryptography() -> None:
    script = "import sys; sys.modules['cryptography'] = None; import contracts; print(contracts.AddUser.wire_name)"

    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "add_user"
