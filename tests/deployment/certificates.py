"""Certificates and keys, made by the commands of docs/deployment.md."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

_CA = """
openssl req -x509 -newkey rsa:3072 -nodes -days 30 -subj "/CN=federation-ca"
-keyout ca.key -out ca.crt -addext "basicConstraints=critical,CA:TRUE"
-addext "keyUsage=critical,keyCertSign,cRLSign"
"""
_REQUEST = """
openssl req -newkey rsa:3072 -nodes -subj "/CN=localhost" -keyout server.key
-out server.csr
"""
_SIGN = """
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30
-extfile ext.cnf -out server.pem
"""
_EXTENSIONS = """subjectAltName=DNS:localhost,IP:127.0.0.1
basicConstraints=CA:FALSE
extendedKeyUsage=serverAuth
"""


def make_certificates(folder: Path) -> Path:
    """Make an authority and a server's certificate; give the authority's."""
    (folder / "ext.cnf").write_text(_EXTENSIONS)
    for line in (_CA, _REQUEST, _SIGN):
        _run(folder, line)
    return folder / "ca.crt"


def make_key(path: Path) -> Path:
    """Make a SuperNode's pair of keys."""
    _run(path.parent, f'ssh-keygen -q -t ecdsa -b 384 -N "" -f {path.name}')
    return path


def _run(folder: Path, line: str) -> None:
    subprocess.run(shlex.split(line), cwd=folder, check=True, capture_output=True)
