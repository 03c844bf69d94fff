//! The OpenAPI document names exactly the routes that are promised, and each of them is served.

use std::collections::BTreeSet;

use dagger_api::ProblemKind;
use dagger_payload::refusal::RefusalCode;
use hyper::StatusCode;
use serde_json::Value;

use crate::agent::Agent;

/// What the API promises; a new route stands here too.
const PROMISED: [(&str, &str); 43] = [
    ("get", "/metrics"),
    ("get", "/v1/accounts"),
    ("get", "/v1/accounts/{account}"),
    ("get", "/v1/accounts/{account}/usage"),
    ("get", "/v1/cluster"),
    ("get", "/v1/events"),
    ("get", "/v1/fsck"),
    ("get", "/v1/health"),
    ("get", "/v1/history"),
    ("get", "/v1/hosts"),
    ("get", "/v1/images"),
    ("get", "/v1/images/{digest}"),
    ("get", "/v1/ledger"),
    ("get", "/v1/log"),
    ("get", "/v1/openapi.json"),
    ("get", "/v1/operators"),
    ("get", "/v1/payloads/{digest}"),
    ("get", "/v1/problems"),
    ("get", "/v1/proofs/account/{account}"),
    ("get", "/v1/proofs/epoch/{epoch}"),
    ("get", "/v1/proofs/host/{host}"),
    ("get", "/v1/proofs/image/{publisher}/{image}"),
    ("get", "/v1/proofs/operator/{operator}"),
    ("get", "/v1/proofs/order"),
    ("get", "/v1/proofs/payload/{digest}"),
    ("get", "/v1/proofs/proposal/{proposal}"),
    ("get", "/v1/proofs/seat/{seat}"),
    ("get", "/v1/proofs/usage/{account}/{host}"),
    ("get", "/v1/proofs/vm/{vm}"),
    ("get", "/v1/proofs/volume/{volume}"),
    ("get", "/v1/proposals"),
    ("get", "/v1/roster"),
    ("get", "/v1/vms"),
    ("get", "/v1/vms/{vm}"),
    ("get", "/v1/vms/{vm}/console"),
    ("get", "/v1/vms/{vm}/export"),
    ("get", "/v1/vms/{vm}/history"),
    ("get", "/v1/volumes"),
    ("get", "/v1/volumes/{volume}"),
    ("post", "/v1/images"),
    ("post", "/v1/payloads"),
    ("post", "/v1/predictions"),
    ("post", "/v1/vms/{vm}/local-stop"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_and_the_router_name_the_promised_routes_and_no_other() {
    let agent = Agent::start().await;
    let document: Value = agent.unix.get_json("/v1/openapi.json").await;
    assert!(document["openapi"].as_str().expect("a version").starts_with("3.1"));
    let paths = document["paths"].as_object().expect("paths");
    let documented: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").keys();
            methods.map(move |method| (method.as_str(), path.as_str()))
        })
        .collect();
    assert_eq!(documented, BTreeSet::from(PROMISED));

    for (method, path) in documented {
        let path = path
            .replace("{account}", &"0".repeat(32))
            .replace("{digest}", &"0".repeat(64))
            .replace("{proposal}", &"0".repeat(64))
            .replace("{epoch}", "0")
            .replace("{seat}", "0")
            .replace("{operator}", "none")
            .replace("{host}", &"0".repeat(32))
            .replace("{publisher}", "none")
            .replace("{image}", "none")
            .replace("{vm}", "none")
            .replace("{volume}", "none");
        let request = agent.unix.request(&method.to_uppercase(), &path);
        let response =
            agent.unix.open(request.body(http_body_util::Full::default()).expect("a request"));
        let status = response.await.status();
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        // This ledger has nothing that a quorum attests.
        let is_later = path.starts_with("/v1/proofs") && status == StatusCode::SERVICE_UNAVAILABLE;
        assert!(is_later || !status.is_server_error(), "{method} {path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reference_of_the_document_leads_somewhere() {
    let agent = Agent::start().await;
    let document: Value = agent.unix.get_json("/v1/openapi.json").await;
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect_references(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                references.push(reference.to_owned());
            }
            members.values().for_each(|member| collect_references(member, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_that_an_error_can_carry_is_listed_with_what_to_do() {
    let agent = Agent::start().await;
    let kinds: Vec<ProblemKind> = agent.unix.get_json("/v1/problems").await;
    for code in RefusalCode::ALL {
        let is_listed = |kind: &&ProblemKind| {
            kind.code == code.as_str() && kind.rule.as_deref() == Some(code.rule())
        };
        assert!(kinds.iter().find(is_listed).is_some(), "{code}");
    }
    for path in ["/v1/nowhere", "/v1/vms/none", "/v1/volumes/none", "/v1/vms?x=1"] {
        let problem = agent.unix.get(path).await.problem();
        assert_eq!(problem.type_uri, format!("urn:dagger:problem:{}", problem.code), "{path}");
        let told =
            |kind: &ProblemKind| (kind.code.clone(), kind.title.clone(), kind.advice.clone());
        let met = (problem.code.clone(), problem.title.clone(), problem.advice.clone());
        assert!(kinds.iter().any(|kind| told(kind) == met), "{path}: {problem:?}");
    }
    let advice = async |path| agent.unix.get(path).await.problem().advice;
    assert!(advice("/v1/nowhere").await.contains("/v1/openapi.json"));
    assert!(advice("/v1/vms/none").await.contains("daggerctl vm ls"));
}
