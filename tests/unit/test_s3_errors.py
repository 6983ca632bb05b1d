import re
import ssl

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
    SSOTokenLoadError,
    TokenRetrievalError,
)
from urllib3.exceptions import ProtocolError
from urllib3.exceptions import SSLError as InnerSSLError
from urllib3.util.ssl_match_hostname import CertificateError

from keepstep.errors import (
    ExitCode,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    StoreNotFound,
)
from keepstep.storage.retrying import RetryPolicy
from keepstep.storage.s3_body import checksum_of_parts, is_of_parts
from keepstep.storage.s3_client import S3Client
from keepstep.storage.s3_errors import code_of, is_passing, may_have_landed
from keepstep.storage.s3_remedies import holds_secrets, translated, without_secrets

URL = "http://store"


def answer(
    status: int, code: str = "", message: str = "it says", *, operation: str = "PutObject"
) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, operation)  # type: ignore[arg-type]  # no more is looked at


def over_tls(inner: Exception) -> SSLError:
    """As it comes out of botocore: ssl's error in urllib3's, and that in its own."""
    return SSLError(endpoint_url=URL, error=InnerSSLError(inner))


def told(error: Exception, operation: str = "put_object") -> StorageError:
    return translated(error, operation, "a/b", where="s3://bucket/run")


@pytest.mark.parametrize(
    "error",
    [
        answer(503, "SlowDown"),
        answer(500, "InternalError"),
        answer(200, "InternalError"),
        answer(502),
        answer(429, "TooManyRequests"),
        answer(400, "RequestTimeout"),
        answer(400, "BadDigest"),
        answer(409, "ConditionalRequestConflict"),
        answer(400, "IncompleteBody"),
        answer(400, "RequestThrottled"),
        answer(400, "RequestThrottledException"),
        answer(400, "KMS.ThrottlingException"),
        answer(400, "IDPCommunicationError", operation="AssumeRoleWithWebIdentity"),
        answer(503, "ServerBusy"),
        EndpointConnectionError(endpoint_url=URL),
        ConnectTimeoutError(endpoint_url=URL),
        ReadTimeoutError(endpoint_url=URL),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ProtocolError("cut"),
        ConnectionResetError(),
        over_tls(ssl.SSLEOFError(8, "EOF occurred in violation of protocol")),
        over_tls(ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")),
        over_tls(ConnectionResetError()),
        StorageUnavailable("3 of 4 bytes came"),
    ],
    ids=repr,
)
def test_what_passes(error: Exception) -> None:
    assert is_passing(error)
    assert type(told(error)) is StorageUnavailable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(403, "AccessDenied"), StorageDenied),
        (answer(403), StorageDenied),
        (answer(401, "Unauthorized"), StorageDenied),
        (answer(403, "SignatureDoesNotMatch"), StorageDenied),
        (answer(403, "InvalidAccessKeyId"), StorageDenied),
        (answer(403, "RequestTimeTooSkewed"), StorageDenied),
        (answer(400, "ExpiredToken"), StorageDenied),
        (NoCredentialsError(), StorageDenied),
        (PartialCredentialsError(provider="env", cred_var="x"), StorageDenied),
        (ProfileNotFound(profile="x"), StorageDenied),
        (answer(404, "NoSuchKey"), ObjectNotFound),
        (answer(404), ObjectNotFound),
        (answer(404, "NoSuchUpload"), ObjectNotFound),
        (answer(404, "NoSuchBucket"), StoreNotFound),
        (answer(301, "PermanentRedirect"), StoreNotFound),
        (answer(400, "InvalidBucketName"), StoreNotFound),
        (ParamValidationError(report="Bucket"), StoreNotFound),
        (answer(412, "PreconditionFailed"), ObjectExists),
        (answer(412), ObjectExists),
        (answer(507, "InsufficientStorage"), StorageFull),
        (answer(501, "NotImplemented"), StorageUnavailable),
        (answer(400, "InvalidRequest"), StorageUnavailable),
        (over_tls(ssl.SSLCertVerificationError(1, "self-signed")), StorageUnavailable),
        (over_tls(CertificateError("another host")), StorageUnavailable),
        (SSOTokenLoadError(error_msg="none"), StorageDenied),
        # botocore turns errors that come in a 200 into these
        (answer(500, "AccessDenied"), StorageDenied),
        (answer(500, "PreconditionFailed"), ObjectExists),
        (answer(500, "NoSuchUpload"), ObjectNotFound),
        (answer(500, "InvalidPart"), StorageUnavailable),
        (answer(500, "EntityTooSmall"), StorageUnavailable),
        (answer(403, "AccessDenied", operation="AssumeRole"), StorageDenied),
        (answer(404, "ResourceNotFound", operation="GetRoleCredentials"), StorageDenied),
        (ObjectNotFound("as it is"), ObjectNotFound),
    ],
    ids=repr,
)
def test_what_lasts(error: Exception, kind: type[StorageError]) -> None:
    assert not is_passing(error)
    assert type(told(error)) is kind


def refusal(operation: str, message: str = "Access Denied") -> ClientError:
    return answer(403, "AccessDenied", message, operation=operation)


@pytest.mark.parametrize(
    ("error", "operation", "part"),
    [
        (refusal("PutObject"), "put_object", "grant s3:PutObject there"),
        (refusal("UploadPart"), "upload_part", "grant s3:PutObject there"),
        (refusal("ListObjectsV2"), "list_objects_v2", "grant s3:ListBucket there"),
        (refusal("GetObject"), "get_object", "grant s3:GetObject and s3:ListBucket there"),
        (refusal("HeadObject"), "head_object", "grant s3:GetObject and s3:ListBucket there"),
        (refusal("DeleteObjects"), "delete_objects", "grant s3:DeleteObject there"),
        (answer(403, "SignatureDoesNotMatch"), "put_object", "correct AWS_SECRET_ACCESS_KEY"),
        (answer(403, "InvalidAccessKeyId"), "put_object", "set AWS_ACCESS_KEY_ID"),
        (answer(400, "ExpiredToken"), "put_object", "fetch new credentials"),
        (NoCredentialsError(), "put_object", "give the machine a role"),
        (answer(404, "NoSuchBucket"), "put_object", "create it, or correct the URI"),
        (answer(301, "PermanentRedirect"), "put_object", "set AWS_REGION"),
        (EndpointConnectionError(endpoint_url=URL), "put_object", "AWS_ENDPOINT_URL"),
        (over_tls(ssl.SSLCertVerificationError()), "put_object", "set AWS_CA_BUNDLE"),
        (SSOTokenLoadError(error_msg="none"), "put_object", "aws sso login"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_sentence_has_the_store_and_the_remedy(
    error: Exception, operation: str, part: str
) -> None:
    message = str(told(error, operation))
    assert message.startswith("s3://bucket/run: ")
    assert part in message
    assert "\n" not in message


def test_a_refusal_repeats_what_the_store_said() -> None:
    said = "User: me is not\n authorized to perform: s3:PutObject on resource: bucket"
    message = str(told(refusal("PutObject", said)))
    assert "grant s3:PutObject there" in message
    assert "not authorized to perform: s3:PutObject on resource: bucket" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            refusal("PutObject", "me is not authorized to perform: kms:GenerateDataKey on x"),
            "kms:GenerateDataKey",
        ),
        (
            refusal(
                "AssumeRoleWithWebIdentity",
                "Not authorized to perform sts:AssumeRoleWithWebIdentity",
            ),
            "AssumeRoleWithWebIdentity refused",
        ),
    ],
    ids=["key", "role"],
)
def test_a_refusal_of_something_else_does_not_blame_the_bucket(
    error: ClientError, named: str
) -> None:
    message = str(told(error))
    assert named in message
    assert "s3:PutObject" not in message


def retrieving(provider: str) -> Exception:
    return CredentialRetrievalError(provider=provider, error_msg="no answer")


@pytest.mark.parametrize(
    ("error", "name", "kind"),
    [
        (retrieving("iam-role"), "iam-role", StorageUnavailable),
        (retrieving("container-role"), "container-role", StorageUnavailable),
        (MetadataRetrievalError(error_msg="no answer"), "metadata service", StorageUnavailable),
        (retrieving("their source"), "their source", StorageDenied),
        (TokenRetrievalError(provider="sso", error_msg="no answer"), "sso", StorageDenied),
    ],
    ids=repr,
)
def test_a_source_of_credentials_that_fails_is_asked_again_and_named(
    error: Exception, name: str, kind: type[StorageError]
) -> None:
    assert is_passing(error)
    assert not may_have_landed(error), "the store was not asked"
    assert type(told(error)) is kind
    assert re.search(f"no credentials came from .*{name}: no answer", str(told(error)))


@pytest.mark.parametrize(
    "error",
    [answer(500, "InternalError"), ReadTimeoutError(endpoint_url=URL), ConnectionResetError()],
    ids=repr,
)
def test_what_may_have_been_carried_out_although_it_failed(error: Exception) -> None:
    assert may_have_landed(error)


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "AccessDenied"),
        answer(412, "PreconditionFailed"),
        EndpointConnectionError(endpoint_url=URL),
        ConnectTimeoutError(endpoint_url=URL),
    ],
    ids=repr,
)
def test_what_was_not_carried_out(error: Exception) -> None:
    assert not may_have_landed(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to http://u:p@host:1/bucket", "to http://host:1/bucket"),
        ("to http://u:p/q@host", "to http://host"),
        ("to http://u v:p q@host", "to http://host"),
        ("see https://host/page or mail me@host", "see https://host/page or mail me@host"),
        ("arn:aws:sts::1:assumed-role/r/me@host", "arn:aws:sts::1:assumed-role/r/me@host"),
    ],
)
def test_what_urls_hold_is_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert holds_secrets(ValueError(text)) is (text != shown)


def test_only_a_checksum_of_checksums_is_compared() -> None:
    of_parts = checksum_of_parts(["AAAAAA==", "AAAAAA=="])
    assert of_parts.endswith("-2")
    assert is_of_parts({"ChecksumCRC32C": of_parts})
    assert not is_of_parts({"ChecksumCRC32C": "AAAAAA==", "ChecksumType": "FULL_OBJECT"})
    assert not is_of_parts({})


def test_errors_name_their_key_and_carry_their_exit_code() -> None:
    assert told(answer(404, "NoSuchKey")).key == "a/b"
    assert told(answer(403, "AccessDenied")).exit_code == ExitCode.DENIED
    assert told(answer(404, "NoSuchBucket")).exit_code == ExitCode.CONFIG
    assert told(answer(503, "SlowDown")).exit_code == ExitCode.STORAGE_UNAVAILABLE


def test_what_the_store_said_is_on_one_line() -> None:
    message = str(told(answer(503, "SlowDown", "please\n  reduce")))
    assert "put_object failed: SlowDown: please reduce" in message


def test_a_code_is_a_word_for_counting() -> None:
    assert code_of(answer(503, "SlowDown")) == "SlowDown"
    assert code_of(answer(502)) == "502"
    assert code_of(ConnectionResetError()) == "ConnectionResetError"


def test_what_is_a_storage_error_already_is_raised_as_it_is() -> None:
    error = StorageUnavailable("3 of 4 bytes came", key="a")

    def fail() -> None:
        raise error

    client = S3Client("bucket", "s3://bucket", RetryPolicy(attempts=2, longest_wait_seconds=0.01))
    with pytest.raises(StorageUnavailable) as caught:
        client.run("get_object", "a", fail)
    assert caught.value is error
    assert caught.value.__cause__ is None
