//! What there is to alert on: the metrics say what `/v1/health` says, and no old number for a new
//! one.

use dagger_api::{HealthStatus, HealthView};

use crate::agent::Agent;

async fn scrape(agent: &Agent) -> String {
    let metrics = agent.tcp.get("/metrics").await;
    String::from_utf8(metrics.body.to_vec()).expect("text")
}

/// The value of the one sample that is called so.
fn sample(metrics: &str, name: &str) -> Option<u64> {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = lines.next().map(|text| text.parse().expect("a whole number"));
    assert_eq!(lines.next(), None, "{name} twice");
    value
}

async fn assert_as_health_says(agent: &Agent) {
    let health: HealthView = agent.tcp.get_json("/v1/health").await;
    let metrics = scrape(agent).await;
    for part in &health.parts {
        let name = format!("dagger_agent_health{{part=\"{}\"}}", part.name);
        let is_well = u64::from(part.status == HealthStatus::Ok);
        assert_eq!(sample(&metrics, &name), Some(is_well), "{}: {metrics}", part.name);
    }
    let shown = metrics.lines().filter(|line| line.starts_with("dagger_agent_health{"));
    assert_eq!(shown.count(), health.parts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_say_of_each_part_what_health_says_also_when_the_ledger_is_gone() {
    let agent = Agent::start().await;
    agent.ledger.caught_up(0);
    agent.until(|progress| progress.trust == dagger_agent::verify::reader::Trust::CaughtUp).await;
    assert_as_health_says(&agent).await;
    let metrics = scrape(&agent).await;
    for (which, count) in [("all", 4), ("reached", 4), ("needed", 3)] {
        let name = format!("dagger_agent_voters{{which=\"{which}\"}}");
        assert_eq!(sample(&metrics, &name), Some(count), "{metrics}");
    }
    assert_eq!(sample(&metrics, "dagger_agent_health{part=\"ledger\"}"), Some(1));
    assert_eq!(sample(&metrics, "dagger_agent_bytes{which=\"ledger_store\"}"), Some(4096));
    assert!(sample(&metrics, "dagger_agent_bytes{which=\"storage_free\"}") > Some(0));
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("dagger_agent_build_info{{version=\"{version}\"}}");
    assert_eq!(sample(&metrics, &build), Some(1), "{metrics}");

    agent.remove_ledger().await;
    assert_as_health_says(&agent).await;
    let metrics = scrape(&agent).await;
    assert_eq!(sample(&metrics, "dagger_agent_health{part=\"ledger\"}"), Some(0));
    assert_eq!(sample(&metrics, "dagger_agent_health{part=\"quorum\"}"), Some(0));
    // Unknown now, and not what they were.
    assert!(!metrics.contains("dagger_agent_voters{"), "{metrics}");
    assert_eq!(sample(&metrics, "dagger_agent_bytes{which=\"ledger_store\"}"), None);
    // Who has signed twice stays named.
    assert_eq!(sample(&metrics, "dagger_agent_members_forked"), Some(1));
}
