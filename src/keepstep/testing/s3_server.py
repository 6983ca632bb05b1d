"""A real S3 server on loopback: SeaweedFS, started in a directory that keeps its data.

As a class for tests, and as a command that lends its server to another command:

    python -m keepstep.testing.s3_server --directory runs/s3 --bucket data -- COMMAND...
"""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from keepstep.errors import StorageUnavailable
from keepstep.testing import weed
from keepstep.testing.ports import PortBlock, claim_ports

_READY_TIMEOUT_SECONDS = 60.0
_STOP_TIMEOUT_SECONDS = 20.0
_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 2000
_PROBE_BUCKET = "keepstep-ready"
_REGION = "us-east-1"
_NO_PROFILE = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}
_BUCKET_IS_THERE = ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")


class S3Server:
    """An S3 server in ``directory``; data, credentials and, where free, ports survive restarts.

    It dies with this process, however that ends. Identities: ``admin``, and ``reader``, who is
    refused every write. Methods are for one thread at a time, not always the same one.
    """

    def __init__(self, directory: Path | str) -> None:
        """*Raises:* ``ConfigError`` when the server's binary is not installed."""
        self._binary = weed.find_binary()
        self._directory = Path(directory).resolve()
        self._data = self._directory / "data"
        self._data.mkdir(parents=True, exist_ok=True)
        self._identities = weed.read_or_make_identities(self._directory / "identities.json")
        self._ports: PortBlock | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """Fixed from the first ``start`` to ``stop``."""
        if self._ports is None:
            raise RuntimeError(f"the S3 server in {self._directory} has no port yet: start() first")
        return self._ports.first

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """Where the server writes what it has to say."""
        return self._directory / "server.log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def environ(self, identity: str = "admin") -> dict[str, str]:
        """The variables that make a client of the standard chain talk to this server."""
        known = self._identities[identity]
        return {
            "AWS_ACCESS_KEY_ID": known.access_key,
            "AWS_SECRET_ACCESS_KEY": known.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> Self:
        """Serve; after ``kill``, on the same ports and data.

        *Blocks:* until a signed PUT and GET work, 60 s at most.
        *Raises:* ``StorageUnavailable`` with the end of the server's log.
        """
        if self.is_running:
            raise RuntimeError(f"the S3 server in {self._directory} runs already")
        if self._ports is None:
            self._ports = self._claim_ports()
        self._process = self._launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does. Its ports stay ours for the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the server in good order and give up its ports. May be called again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._ports is not None:
            weed.remove_sockets(self._ports.first)
            self._ports.release()
        self._process = self._ports = None

    def create_bucket(self, name: str) -> None:
        """Make the bucket unless it is there."""
        from botocore.exceptions import ClientError

        try:
            self.client().create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _BUCKET_IS_THERE:
                raise

    def client(
        self,
        identity: str = "admin",
        *,
        endpoint: str | None = None,
        read_timeout_seconds: float = 10.0,
    ) -> Any:
        """A botocore client that retries nothing and heeds no profile or proxy of the user's."""
        from botocore.config import Config
        from botocore.session import Session

        known = self._identities[identity]
        config = Config(
            connect_timeout=2,
            read_timeout=read_timeout_seconds,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        )
        return Session(session_vars=_NO_PROFILE).create_client(
            "s3",
            region_name=_REGION,
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=known.access_key,
            aws_secret_access_key=known.secret_key,
            config=config,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim_ports(self) -> PortBlock:
        """Those of last time if they are free: clients may still hold the endpoint."""
        record = self._directory / "ports.json"
        last = json.loads(record.read_bytes())["first"] if record.exists() else None
        ports = claim_ports(preferred=last)
        record.write_text(json.dumps({"first": ports.first}))
        return ports

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process from a thread that lives as long: the kernel ties it to that thread."""
        identities = self._directory / "identities.json"
        arguments = weed.command(self._binary, self._data, identities, self.port)
        started: list[subprocess.Popen[bytes] | OSError] = []
        is_started = threading.Event()

        def run() -> None:
            try:
                process = weed.launch(arguments, self.log)
            except OSError as error:
                started.append(error)
                is_started.set()
                return
            started.append(process)
            is_started.set()
            process.wait()

        threading.Thread(target=run, name="s3-server", daemon=True).start()
        is_started.wait()
        if isinstance(started[0], OSError):
            raise started[0]
        return started[0]

    def _wait_until_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        client = self.client()
        deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
        while True:
            try:
                self.create_bucket(_PROBE_BUCKET)
                client.put_object(Bucket=_PROBE_BUCKET, Key="probe", Body=b"ready")
                client.get_object(Bucket=_PROBE_BUCKET, Key="probe")["Body"].read()
            except (BotoCoreError, ClientError) as error:
                self._check_alive(error, deadline)
            else:
                return
            time.sleep(_POLL_SECONDS)

    def _check_alive(self, error: Exception, deadline: float) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            what = f"ended with status {status} before it was ready"
        elif time.monotonic() > deadline:
            what = f"was not ready within {_READY_TIMEOUT_SECONDS:.0f} s"
        else:
            return
        raise StorageUnavailable(
            f"the S3 server in {self._directory} {what} ({error}). The end of {self.log}:\n"
            f"{self._log_tail()}"
        ) from error

    def _log_tail(self) -> str:
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


if __name__ == "__main__":
    from keepstep.testing.s3_command import main

    main()
