import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)
from urllib3.exceptions import ProtocolError

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
from keepstep.storage.s3_client import S3Client
from keepstep.storage.s3_errors import code_of, is_passing, translated

URL = "http://store"


def answer(status: int, code: str = "", message: str = "it says") -> ClientError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")  # type: ignore[arg-type]  # no more is looked at


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
        EndpointConnectionError(endpoint_url=URL),
        ConnectTimeoutError(endpoint_url=URL),
        ReadTimeoutError(endpoint_url=URL),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ProtocolError("cut"),
        ConnectionResetError(),
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
        (SSLError(endpoint_url=URL, error="certificate"), StorageUnavailable),
        (ObjectNotFound("as it is"), ObjectNotFound),
    ],
    ids=repr,
)
def test_what_lasts(error: Exception, kind: type[StorageError]) -> None:
    assert not is_passing(error)
    assert type(told(error)) is kind


@pytest.mark.parametrize(
    ("error", "operation", "part"),
    [
        (answer(403, "AccessDenied"), "put_object", "grant s3:PutObject there"),
        (answer(403, "AccessDenied"), "upload_part", "grant s3:PutObject there"),
        (answer(403, "AccessDenied"), "list_objects_v2", "grant s3:ListBucket there"),
        (answer(403, "AccessDenied"), "get_object", "grant s3:GetObject there"),
        (answer(403, "AccessDenied"), "delete_objects", "grant s3:DeleteObject there"),
        (answer(403, "SignatureDoesNotMatch"), "put_object", "correct AWS_SECRET_ACCESS_KEY"),
        (answer(403, "InvalidAccessKeyId"), "put_object", "set AWS_ACCESS_KEY_ID"),
        (answer(400, "ExpiredToken"), "put_object", "fetch new credentials"),
        (NoCredentialsError(), "put_object", "give the machine a role"),
        (answer(404, "NoSuchBucket"), "put_object", "create it, or correct the URI"),
        (answer(301, "PermanentRedirect"), "put_object", "set AWS_REGION"),
        (EndpointConnectionError(endpoint_url=URL), "put_object", "AWS_ENDPOINT_URL"),
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
