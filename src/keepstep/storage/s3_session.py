"""Where an S3 client gets its settings and credentials from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import botocore.session
import fsspec.config
from botocore.config import Config
from botocore.configprovider import ConfigChainFactory
from botocore.exceptions import BotoCoreError, CredentialRetrievalError, NoCredentialsError
from botocore.loaders import create_loader

_REGION_VARIABLES = ["AWS_REGION", "AWS_DEFAULT_REGION"]
"""As AWS's other clients read them; botocore by itself knows the second alone."""

_PATIENCE = {"metadata_service_num_attempts": 5, "metadata_service_timeout": 2}
"""Of the machine's metadata service, at least. A node full of ranks asks it at the same moment, and
botocore asks once, for a second."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A client, and where its credentials come from."""

    client: Any
    provider: str


def connect(config: Config) -> Connection:
    """A new client, by what fsspec is configured with for ``s3`` and the standard chain, both read
    anew.

    *Raises:* ``ValueError`` if the endpoint or the region cannot be one; botocore's own errors, of
    which ``NoCredentialsError``: a client without credentials would never get any.
    """
    given: Mapping[str, Any] = fsspec.config.conf.get("s3", {})
    session = botocore.session.Session(profile=given.get("profile"))
    session.register_component("data_loader", _descriptions())
    _honor_region(session)
    _be_patient(session)
    is_given = given.get("key") is not None or given.get("secret") is not None
    provider = "fsspec's configuration" if is_given else _provider_of(session)
    client = session.create_client(
        "s3",
        endpoint_url=given.get("endpoint_url"),
        aws_access_key_id=given.get("key"),
        aws_secret_access_key=given.get("secret"),
        aws_session_token=given.get("token"),
        config=config,
    )
    return Connection(client, provider)


@cache
def _descriptions() -> Any:
    """What botocore knows of AWS's services: a megabyte of JSON, parsed once per process."""
    session = botocore.session.Session()
    return create_loader(session.get_config_variable("data_path"))


def _honor_region(session: Any) -> None:
    chain = ConfigChainFactory(session=session).create_config_chain(
        instance_name="region", env_var_names=_REGION_VARIABLES, config_property_names="region"
    )
    session.get_component("config_store").set_config_provider("region", chain)


def _be_patient(session: Any) -> None:
    for name, least in _PATIENCE.items():
        session.set_config_variable(name, max(least, session.get_config_variable(name)))


def _provider_of(session: Any) -> str:
    """Loads the credentials; returns what botocore calls their source."""
    try:
        credentials = session.get_credentials()
    except BotoCoreError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        # A file that is not there, an answer that is no JSON: the sources let these through.
        told = f"{type(error).__name__}: {error}"
        raise CredentialRetrievalError(provider="their source", error_msg=told) from error
    if credentials is None:
        raise NoCredentialsError
    return str(credentials.method)
