"""The certificates, keys and tokens of one cluster."""

import base64
import secrets
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from testbed.process import LOOPBACK

# Users by name, with the groups that Kubernetes' own role bindings know.
_USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    # A kubelet's rights depend on the pods on its node, which is not what is tested here.
    "node": ("system:node", "system:masters"),
}


class Credentials:
    """Written into a folder once; every path here is a file in it."""

    def __init__(self, folder: Path) -> None:
        """Make and write them."""
        self.ca_file = folder / "ca.crt"
        self.server_cert = folder / "server.crt"
        self.server_key = folder / "server.key"
        self.service_account_key = folder / "service-account.key"
        self.tokens = folder / "tokens.csv"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        names = (LOOPBACK, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        server = authority.issue_cert(*names)
        self.server_cert.write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        _write_secret(self.server_key, server.private_key_pem.bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        _write_secret(self.service_account_key, pem)
        self._tokens = {name: secrets.token_hex(16) for name in _USERS}
        lines = (f'{self._tokens[name]},{user},{name},"{groups}"\n' for name, (user, groups) in _USERS.items())
        _write_secret(self.tokens, "".join(lines).encode())

    @property
    def admin(self) -> str:
        """The token of someone who may do everything."""
        return self.token("admin")

    def token(self, user: str) -> str:
        """The token of one of the cluster's own parts, by its name."""
        return self._tokens[user]

    def kubeconfig(self, token: str, server: str, namespace: str = "default") -> dict[str, Any]:
        """A kubeconfig for the API server at `server`, complete in itself."""
        authority = base64.b64encode(self.ca_file.read_bytes()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testbed", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": "testbed", "user": {"token": token}}],
            "contexts": [
                {"name": "testbed", "context": {"cluster": "testbed", "user": "testbed", "namespace": namespace}}
            ],
            "current-context": "testbed",
        }


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
