"""A client of Kontiki's gRPC API, as anybody would write it: stubs generated from proto/api, TLS with a client certificate.

Usage: api_client.py STUBS_DIR HOST:PORT CA CERT KEY
Exits with 0 and prints one line per thing that held; with 1 at the first that did not.
"""

import json
import sys
import threading
import uuid

sys.path.insert(0, sys.argv[1])

import grpc  # noqa: E402
from google.rpc import error_details_pb2, status_pb2  # noqa: E402
import resources_pb2 as pb  # noqa: E402
import resources_pb2_grpc as rpc  # noqa: E402

CONFIG_MAPS = pb.Resource(group="", version="v1", resource="configmaps")
RUN = uuid.uuid4().hex[:8]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def config_map(name, data, resource_version=None):
    meta = {"name": name, "namespace": "default", "labels": {"run": RUN}}
    if resource_version:
        meta["resourceVersion"] = resource_version
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
    return pb.Object(api_version="v1", kind="ConfigMap", raw=json.dumps(body).encode())


def create(name, data):
    return pb.CreateRequest(resource=CONFIG_MAPS, namespace="default", object=config_map(name, data))


def ref(name):
    return pb.ObjectRef(resource=CONFIG_MAPS, namespace="default", name=name)


def details(error):
    """The google.rpc.Status details of an error, by type name."""
    trailer = dict(error.trailing_metadata()).get("grpc-status-details-bin")
    assert trailer, "an error carries details"
    status = status_pb2.Status.FromString(trailer)
    return {any_.type_url.rsplit(".", 1)[-1]: any_ for any_ in status.details}


def fails_with(code, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        return error
    raise AssertionError(f"it succeeded, and should have failed with {code}")


def listed(stub):
    revision, items = 0, []
    request = pb.ListRequest(resource=CONFIG_MAPS, namespace="default", label_selector=f"run={RUN}")
    for message in stub.List(request):
        revision = message.revision
        items.extend(json.loads(item.raw) for item in message.items)
    return revision, items


def check_create_and_list(stub):
    made = stub.Create(create(f"{RUN}-a", {"k": "1"}))
    body = json.loads(made.raw)
    assert body["metadata"]["uid"] and int(body["metadata"]["resourceVersion"]) == made.revision
    revision, items = listed(stub)
    assert revision >= made.revision and [i["metadata"]["name"] for i in items] == [f"{RUN}-a"]
    fails_with(grpc.StatusCode.ALREADY_EXISTS, lambda: stub.Create(create(f"{RUN}-a", {})))
    fails_with(grpc.StatusCode.NOT_FOUND, lambda: stub.Get(pb.GetRequest(ref=ref(f"{RUN}-none"))))
    print(f"create and list: revision {revision}")


def check_watch(stub):
    revision, _ = listed(stub)
    request = pb.WatchRequest(
        resource=CONFIG_MAPS, namespace="default", label_selector=f"run={RUN}", after_revision=revision
    )
    stream = stub.Watch(request)
    seen = []

    def follow():
        for event in stream:
            if event.type != pb.BOOKMARK:
                seen.append((event.type, event.revision, json.loads(event.object.raw)["data"]["k"]))
            if len(seen) == 3:
                stream.cancel()
                return

    watcher = threading.Thread(target=follow)
    watcher.start()
    stub.Create(create(f"{RUN}-w", {"k": "1"}))
    stub.Update(pb.UpdateRequest(ref=ref(f"{RUN}-w"), object=config_map(f"{RUN}-w", {"k": "2"})))
    stub.Delete(pb.DeleteRequest(ref=ref(f"{RUN}-w")))
    watcher.join(timeout=10)
    assert not watcher.is_alive(), f"the watch delivered only {seen}"
    assert [kind for kind, _, _ in seen] == [pb.ADDED, pb.MODIFIED, pb.DELETED], seen
    assert [value for _, _, value in seen] == ["1", "2", "2"], seen
    assert sorted({r for _, r, _ in seen}) == [r for _, r, _ in seen], "revisions grow"
    print(f"watch: 3 events from revision {revision}")


def check_stale_update(stub):
    first = json.loads(stub.Get(pb.GetRequest(ref=ref(f"{RUN}-a"))).raw)
    stale = first["metadata"]["resourceVersion"]
    fresh = stub.Update(pb.UpdateRequest(ref=ref(f"{RUN}-a"), object=config_map(f"{RUN}-a", {"k": "2"}, stale)))
    update = pb.UpdateRequest(ref=ref(f"{RUN}-a"), object=config_map(f"{RUN}-a", {"k": "3"}, stale))
    error = fails_with(grpc.StatusCode.ABORTED, lambda: stub.Update(update))
    found = details(error)
    info = error_details_pb2.ErrorInfo()
    assert found["ErrorInfo"].Unpack(info) and info.reason == "Conflict", info
    assert "PreconditionFailure" in found, found.keys()
    assert stub.Get(pb.GetRequest(ref=ref(f"{RUN}-a"))).revision == fresh.revision, "nothing was written"
    print(f"stale update: ABORTED, details {sorted(found)}")


def check_transact(stub):
    names = [f"{RUN}-t{i}" for i in range(50)]
    done = stub.Transact(pb.TransactRequest(writes=[pb.Write(create=create(n, {"k": n})) for n in names]))
    assert len(done.objects) == 50 and {o.revision for o in done.objects} == {done.revision}
    _, items = listed(stub)
    versions = {i["metadata"]["resourceVersion"] for i in items if i["metadata"]["name"] in names}
    assert versions == {str(done.revision)}, versions

    before, items = listed(stub)
    writes = [pb.Write(create=create(f"{RUN}-u{i}", {})) for i in range(49)] + [pb.Write(create=create(names[0], {}))]
    fails_with(grpc.StatusCode.ALREADY_EXISTS, lambda: stub.Transact(pb.TransactRequest(writes=writes)))
    _, after = listed(stub)
    assert [i["metadata"]["name"] for i in after] == [i["metadata"]["name"] for i in items], "all or nothing"
    print(f"transact: 50 objects at revision {done.revision}; all or nothing")


def clean(stub):
    request = pb.ListRequest(resource=CONFIG_MAPS, namespace="default", label_selector=f"run={RUN}")
    deleted = stub.DeleteCollection(pb.DeleteCollectionRequest(list=request)).deleted
    assert deleted == 51 and listed(stub)[1] == [], deleted
    print(f"delete collection: {deleted}")


def main():
    _, _, address, ca, cert, key = sys.argv
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    with grpc.secure_channel(address, credentials) as channel:
        stub = rpc.ResourcesStub(channel)
        for check in (check_create_and_list, check_watch, check_stale_update, check_transact, clean):
            check(stub)


if __name__ == "__main__":
    main()
