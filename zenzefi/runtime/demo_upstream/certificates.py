"""The certificate routes of a Zenzefi server over the invented inventory."""

import re

from aiohttp import web

from zenzefi.runtime.demo_upstream.exchange import (
    BadRequestError,
    query_values,
    read_document,
    read_json,
    refusal,
    route,
    whole_number,
)
from zenzefi.runtime.demo_upstream.inventory import Certificate, CertificateStore

STORE = web.AppKey("store", CertificateStore)


def _page(request: web.Request, found: list[Certificate]) -> web.Response:
    limit = whole_number(request, "limit", 100, most=1000)
    offset = whole_number(request, "offset", 0, most=10**9)
    items = [certificate.summary() for certificate in found[offset : offset + limit]]
    return web.json_response({"items": items, "total": len(found), "limit": limit, "offset": offset})


async def filter_certificates(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    asked = dict(query_values(request))
    document = await read_json(request)
    if isinstance(document, dict):
        asked.update({str(name): str(value) for name, value in document.items()})
    found = request.app[STORE].find(query=asked.get("query", ""), kind=asked.get("type", ""))
    return _page(request, found)


async def certificate_details(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    return web.json_response(request.app[STORE].get(path["id"]).summary())


async def export_certificates(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    """One id, several separated by commas, or `all`."""
    store = request.app[STORE]
    if path["ids"] == "all":
        chosen = store.find()
    else:
        chosen = [store.get(certificate_id) for certificate_id in path["ids"].split(",")]
    name = f"certificate-{chosen[0].id}.pem" if len(chosen) == 1 else "certificates.pem"
    return web.Response(
        body=b"".join(certificate.pem() for certificate in chosen),
        headers={
            "Content-Type": "application/x-pem-file",
            "Content-Disposition": f'attachment; filename="{name}"',
        },
    )


async def import_certificates(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    label = re.sub(r"[^\w.-]", "-", path.get("label", ""))
    try:
        added = request.app[STORE].add(await read_document(request), label=label)
    except BadRequestError:
        raise
    except ValueError as error:
        raise BadRequestError(str(error)) from error
    return web.json_response({"imported": [certificate.summary() for certificate in added]}, status=201)


async def _ids(request: web.Request) -> list[str] | None:
    document = await read_json(request)
    ids = document.get("ids") if isinstance(document, dict) else document
    if ids is None:
        text = query_values(request).get("ids")
        return None if text is None else [part for part in text.split(",") if part]
    if not isinstance(ids, list):
        raise BadRequestError("ids must be a list")
    return [str(certificate_id) for certificate_id in ids]


async def remove_certificates(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    ids = await _ids(request)
    if not ids:
        raise BadRequestError("name the certificates in ids")
    removed = request.app[STORE].remove(ids)
    return web.json_response({"removed": removed, "unknown": [name for name in ids if name not in removed]})


async def restore_certificates(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response({"restored": request.app[STORE].restore(await _ids(request))})


async def active_certificates(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return _page(request, request.app[STORE].find(active=True))


async def activate_certificate(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    return web.json_response(request.app[STORE].set_active(path["id"], True).summary())


async def deactivate_certificate(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    return web.json_response(request.app[STORE].set_active(path["id"], False).summary())


async def enhanced_rights(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return _page(request, request.app[STORE].find(kind="ENHANCED_RIGHTS"))


async def testing_options(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    certificate = request.app[STORE].get(path["id"])
    return web.json_response({"id": certificate.id, "role": certificate.role, "replaceable": True})


async def testing_use_cases(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    certificate = request.app[STORE].get(path["id"])
    return web.json_response({"id": certificate.id, "use_cases": ["read_out", certificate.type.lower()]})


async def start_update(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    store = request.app[STORE]
    if store.update_state == "running":
        return refusal(409, "an update is running")
    store.start_update()
    return web.json_response({"state": store.update_state, "kind": path.get("kind", "full")}, status=202)


async def cancel_update(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    if not request.app[STORE].cancel_update():
        return refusal(409, "no update is running")
    return web.json_response({"state": request.app[STORE].update_state})


async def update_metrics(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response(request.app[STORE].update_metrics())


async def integrity_report(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response(request.app[STORE].check_integrity())


async def integrity_log(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    lines = request.app[STORE].integrity_log
    if not lines:
        return refusal(404, "no integrity check has run")
    return web.Response(text="\n".join([*lines, ""]))


async def integrity_log_exists(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response({"exists": bool(request.app[STORE].integrity_log)})


async def column_order(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    store = request.app[STORE]
    if request.method in ("PUT", "POST"):
        document = await read_json(request)
        if not isinstance(document, list) or not all(isinstance(name, str) for name in document):
            raise BadRequestError("a list of column names is needed")
        store.reorder_columns(document)
    return web.json_response(store.column_order)


async def column_visibility(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    store = request.app[STORE]
    if request.method in ("PUT", "POST"):
        document = await read_json(request)
        if not isinstance(document, dict):
            raise BadRequestError("an object of column names is needed")
        store.show_columns(document)
    return web.json_response(store.column_visibility)


ROUTES = (
    route("GET POST", "/certificates/filter", filter_certificates, reads_body=True),
    route("GET", "/certificates/details/{id}", certificate_details),
    route("GET", "/certificates/export/{ids}", export_certificates),
    route("POST PUT", "/certificates/import", import_certificates, reads_body=True),
    route("POST PUT", "/certificates/import/{label}", import_certificates, reads_body=True),
    route("POST DELETE", "/certificates/remove", remove_certificates, reads_body=True),
    route("POST", "/certificates/restore", restore_certificates, reads_body=True),
    route("GET", "/certificates/activeForTesting", active_certificates),
    route("POST PUT", "/certificates/activeForTesting/activate/{id}", activate_certificate),
    route("POST PUT DELETE", "/certificates/activeForTesting/deactivate/{id}", deactivate_certificate),
    route("GET", "/certificates/activeForTesting/enhanced", enhanced_rights),
    route("GET", "/certificates/activeForTesting/options/{id}", testing_options),
    route("GET", "/certificates/activeForTesting/usecases/{id}", testing_use_cases),
    route("POST DELETE", "/certificates/update/cancel", cancel_update),
    route("GET", "/certificates/update/metrics", update_metrics),
    route("POST", "/certificates/update", start_update),
    route("POST", "/certificates/update/{kind}", start_update),
    route("GET", "/certificates/checkSystemIntegrityReport", integrity_report),
    route("GET", "/certificates/checkSystemIntegrityLog", integrity_log),
    route("GET", "/certificates/checkSystemIntegrityLogExistance", integrity_log_exists),
    route("GET PUT POST", "/configurations/certificatesColumnOrder", column_order, reads_body=True),
    route("GET PUT POST", "/configurations/certificatesColumnVisibility", column_visibility, reads_body=True),
)
