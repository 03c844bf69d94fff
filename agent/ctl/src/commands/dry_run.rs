//! `vm create --dry-run`: where a VM would go, and what speaks against each other host.
//!
//! Owns how a prediction is shown. Signs nothing. Called by `commands::vm`.

use dagger_api::PredictionView;
use dagger_payload::kind::Body;
use dagger_payload::prediction::{HostFit, HostOutlook};

use crate::failure::Failure;
use crate::output::table;
use crate::session::Session;

/// Asks what would come of `body`, and shows it; a refusal is the command's failure.
pub(crate) async fn run(body: Body, session: &Session) -> Result<(), Failure> {
    let key = session.signing_key()?;
    let document = session.document(&key, body).await?.to_bytes();
    let prediction = session.client.predict(document.into()).await?;
    session.output.show(&prediction, show)?;
    prediction.refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
}

fn show(prediction: &PredictionView) -> String {
    let mut text = String::new();
    if !prediction.hosts.is_empty() {
        let rows = prediction
            .hosts
            .iter()
            .map(|outlook| [outlook.name.to_string(), verdict(outlook), free(outlook)]);
        text = table(["HOST", "VERDICT", "MEMORY FREE AFTER"], rows, "") + "\n";
    }
    if prediction.hosts_left_out > 0 {
        text += &format!("and {} more hosts\n", prediction.hosts_left_out);
    }
    if prediction.refusal.is_none() {
        text += "It would be accepted. Nothing was signed or ordered.\n";
    }
    text
}

fn verdict(outlook: &HostOutlook) -> String {
    let against = match outlook.broken_preferences {
        0 => String::new(),
        count => format!(", against {count} preferences"),
    };
    match &outlook.fit {
        HostFit::Chosen => format!("would be offered it{against}"),
        HostFit::Fits => format!("could carry it{against}"),
        HostFit::Unfit { why } => why.clone(),
    }
}

fn free(outlook: &HostOutlook) -> String {
    match outlook.fit {
        HostFit::Unfit { .. } => "-".to_owned(),
        HostFit::Chosen | HostFit::Fits => {
            let permille = outlook.free_memory_permille;
            format!("{}.{} %", permille / 10, permille % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::HostId;

    use super::*;

    #[test]
    fn each_host_has_a_line_and_the_end_of_it_says_that_nothing_was_ordered() {
        let outlook = |name: &str, fit, free_memory_permille| HostOutlook {
            host: HostId::ZERO,
            name: name.parse().expect("a name"),
            fit,
            free_memory_permille,
            broken_preferences: 0,
        };
        let full = HostFit::Unfit { why: "has no room".to_owned() };
        let prediction = PredictionView {
            refusal: None,
            vm: None,
            hosts: vec![outlook("host1", HostFit::Chosen, 984), outlook("host2", full, 0)],
            hosts_left_out: 3,
        };
        let shown = show(&prediction);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = shown.lines().map(words).collect();
        let expected = [
            "HOST VERDICT MEMORY FREE AFTER",
            "host1 would be offered it 98.4 %",
            "host2 has no room -",
            "and 3 more hosts",
            "It would be accepted. Nothing was signed or ordered.",
        ];
        assert_eq!(lines, expected);
    }
}
