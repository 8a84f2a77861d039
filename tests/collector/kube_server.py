"""An API server for tests: lists in pages and watches over HTTPS as Kubernetes does, and fails when told to."""

import base64
import datetime
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "a-token"
PATHS = {"/api/v1/pods": "pods", "/api/v1/services": "services",
         "/apis/discovery.k8s.io/v1/endpointslices": "endpointslices",
         **{f"/apis/apps/v1/{name}": name for name in ("replicasets", "deployments", "statefulsets", "daemonsets")},
         "/apis/batch/v1/jobs": "jobs"}
HELD_S = 120


def _certificate(name, key, issuer, issuer_key, *extensions):
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer_name=issuer, subject_name=name, public_key=key.public_key(),
                                      serial_number=x509.random_serial_number(),
                                      not_valid_before=now - datetime.timedelta(days=1),
                                      not_valid_after=now + datetime.timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def make_certificates(directory):
    """A CA, and a key and certificate of 127.0.0.1: files ca.pem and server.pem."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests' own CA")])
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = _certificate(name, ca_key, name, ca_key, (x509.BasicConstraints(True, 0), True), (usage, True),
                      (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False))
    leaf = _certificate(x509.Name([]), key, name, ca_key,
                        (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), True),
                        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False))
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "server.pem").write_bytes(private + leaf.public_bytes(pem))


class KubeServer:
    """`put` and `delete` change objects; the rest makes it fail. `asked` has each request: method, kind, parameters."""

    def __init__(self, directory, port=0):
        self.directory = directory
        if not (directory / "ca.pem").exists():
            make_certificates(directory)
        self.changed = threading.Condition()
        self.objects = {kind: {} for kind in PATHS.values()}
        self.history = []
        self.version = 100
        self.oldest = 0
        self.snapshots = {}
        self.asked = []
        self.accepted = []
        self.refuse = None
        self.gone_as_status = False
        self.open = threading.Event()
        self.open.set()
        self.cuts = self.bookmarks = 0
        self.watching = set()
        self.stopped = False
        server = self

        class Handler(_Handler):
            kube = server

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def kubeconfig(self, ca="ca.pem", **cluster):
        path = self.directory / f"kubeconfig-{ca}"
        trust = base64.b64encode((self.directory / ca).read_bytes()).decode()
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": f"https://127.0.0.1:{self.port}",
                                                    "certificate-authority-data": trust} | cluster}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}]}))
        return path

    def put(self, kind, *objects):
        with self.changed:
            for one in objects:
                self.version += 1
                uid = one["metadata"]["uid"]
                one = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self.version)}}
                self.history.append((self.version, kind, "MODIFIED" if uid in self.objects[kind] else "ADDED", one))
                self.objects[kind][uid] = one
            self.changed.notify_all()

    def delete(self, kind, uid):
        with self.changed:
            self.version += 1
            one = self.objects[kind].pop(uid)
            one = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, kind, "DELETED", one))
            self.changed.notify_all()

    def bookmark(self):
        """To every watch, that it has seen all up to now."""
        with self.changed:
            self.bookmarks += 1
            self.changed.notify_all()

    def forget(self):
        """As etcd compacts: whoever asks for what came after an older version gets 410, so do old pages."""
        with self.changed:
            self.oldest = self.version
            self.history.clear()
            self.snapshots.clear()

    def cut(self):
        """Ends every watch in the middle of an event."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    def close(self):
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self.open.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = HELD_S

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (OSError, ssl.SSLError):
            self.close_connection = True

    def do_GET(self):
        kube, url = self.kube, urlsplit(self.path)
        kind = PATHS.get(url.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kube.asked.append((self.command, kind, query))
        kube.accepted.append(self.headers["Accept"])
        if not kube.open.wait(HELD_S):
            return
        if (self.headers["Authorization"] or "").partition(" ")[2] != TOKEN:
            self.say(401, self.status(401, "Unauthorized"))
        elif kube.refuse:
            self.say(kube.refuse, self.status(kube.refuse, "told to"))
        elif kind is None:
            self.say(404, self.status(404, "NotFound"))
        elif query.get("watch") in ("true", "True"):
            self.watch(kind, query)
        else:
            self.list(kind, query)

    def status(self, code, reason):
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
                "message": reason}

    def say(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def seen(self, one):
        """As the client wants it: whole, or its metadata alone."""
        if "PartialObjectMetadata" in (self.headers["Accept"] or ""):
            return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": one["metadata"]}
        return one

    def list(self, kind, query):
        kube = self.kube
        with kube.changed:
            if token := query.get("continue"):
                version, start = json.loads(base64.b64decode(token))
                if (version, kind) not in kube.snapshots:
                    return self.say(410, self.status(410, "Expired"))
            else:
                version, start = kube.version, 0
                kube.snapshots[version, kind] = list(kube.objects[kind].values())
            items = kube.snapshots[version, kind]
        end = start + int(query.get("limit") or len(items))
        meta = {"resourceVersion": str(version)}
        if end < len(items):
            meta |= {"continue": base64.b64encode(json.dumps([version, end]).encode()).decode(),
                     "remainingItemCount": len(items) - end}
        return self.say(200, {"kind": "List", "apiVersion": "v1", "metadata": meta,
                              "items": [self.seen(one) for one in items[start:end]]})

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, kind, seen):
        self.chunk(json.dumps({"type": kind, "object": seen}).encode() + b"\n")

    def watch(self, kind, query):
        kube, at = self.kube, int(query["resourceVersion"])
        with kube.changed:
            too_old = at < kube.oldest
            cuts, bookmarks = kube.cuts, kube.bookmarks
        if too_old and kube.gone_as_status:
            return self.say(410, self.status(410, "Expired"))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if too_old:
            self.event("ERROR", self.status(410, "Expired"))
            self.wfile.write(b"0\r\n\r\n")
            return None
        me = object()
        kube.watching.add((kind, me))
        try:
            until = datetime.datetime.now() + datetime.timedelta(seconds=int(query["timeoutSeconds"]))
            while not kube.stopped and datetime.datetime.now() < until:
                with kube.changed:
                    news = [row for row in kube.history if row[0] > at and row[1] == kind]
                    if not news and kube.cuts == cuts and kube.bookmarks == bookmarks:
                        kube.changed.wait(0.5)
                        continue
                for version, _, what, one in news:
                    self.event(what, self.seen(one))
                    at = version
                if kube.bookmarks != bookmarks and query.get("allowWatchBookmarks"):
                    bookmarks = kube.bookmarks
                    at = max(at, kube.version)
                    self.event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(at)}})
                if kube.cuts != cuts:
                    half = json.dumps({"type": "ADDED", "object": {"metadata": {"uid": "half", "name": "half"}}})
                    self.chunk(half.encode()[:40])
                    self.close_connection = True
                    return None
            self.wfile.write(b"0\r\n\r\n")
        finally:
            kube.watching.discard((kind, me))
        return None


def meta(name, uid=None, namespace="shop", owner=None, labels=None, **more):
    """`owner` is (kind, uid, name, apiVersion)."""
    made = {"name": name, "uid": uid or name, "namespace": namespace, "labels": labels or {},
            "annotations": {"a": "long" * 100}, "managedFields": [{"manager": "kubelet"}]} | more
    if owner:
        kind, owner_uid, owner_name, version = owner
        made["ownerReferences"] = [{"kind": kind, "uid": owner_uid, "name": owner_name, "apiVersion": version,
                                    "controller": True}]
    return made


def pod(name, ip, containers=(), ports=(), host_network=False, phase="Running", **of):
    """`ports` are (port, protocol)."""
    return {"kind": "Pod", "apiVersion": "v1", "metadata": meta(name, **of),
            "spec": {"hostNetwork": host_network, "nodeName": "node-1", "containers": [
                {"name": "main", "image": "image", "env": [{"name": "E", "value": "x" * 100}],
                 "ports": [{"containerPort": port, "protocol": protocol} for port, protocol in ports]}]},
            "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "containerStatuses": [
                {"name": "main", "containerID": f"containerd://{one}"} for one in containers]}}


def service(name, ip, port=80, selector=None, protocol="TCP", **of):
    return {"kind": "Service", "apiVersion": "v1", "metadata": meta(name, **of),
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": selector,
                     "ports": [{"port": port, "protocol": protocol, "targetPort": 8080}]}}


def endpoint_slice(name, service_name, pods, **of):
    return {"kind": "EndpointSlice", "metadata": meta(name, labels={"kubernetes.io/service-name": service_name}, **of),
            "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": one}} for one in pods]}


def replica_set(name, deployment=None, **of):
    owner = ("Deployment", f"uid-{deployment}", deployment, "apps/v1") if deployment else None
    return {"kind": "ReplicaSet", "metadata": meta(name, **{"owner": owner} | of), "spec": {"big": "x" * 100}}


def deployment(name, **of):
    return {"kind": "Deployment", "metadata": meta(name, uid=f"uid-{name}", **of)}
