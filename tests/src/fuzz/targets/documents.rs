//! Texts that people sign or send: payloads, signatures, keys, genesis, sessions, API requests.

use dagger_api::{ClusterView, ImageImport, Problem};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::HostId;
use dagger_payload::key::{PublicKey, SecretKey};
use dagger_payload::payload::Payload;
use dagger_payload::session::{self, SessionDocument};
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::strict_json;

use super::super::mutate::Form;
use super::super::samples::{NOW, World, key, world};
use super::{Answer, Target, answer, require};

const HOST: HostId = HostId([7; 16]);

pub(super) const TARGETS: &[Target] = &[
    Target { name: "payload", form: Form::Text, samples: documents, read: payload },
    Target { name: "strict-json", form: Form::Text, samples: documents, read: json },
    Target { name: "signature", form: Form::Text, samples: signatures, read: signature },
    Target { name: "public-key", form: Form::Text, samples: public_keys, read: public_key },
    Target { name: "key-file", form: Form::Text, samples: key_files, read: key_file },
    Target { name: "genesis", form: Form::Text, samples: genesis_documents, read: genesis },
    Target {
        name: "genesis-signatures",
        form: Form::Text,
        samples: genesis_signatures,
        read: genesis_signature_file,
    },
    Target { name: "session", form: Form::Text, samples: sessions, read: session },
    Target { name: "api", form: Form::Text, samples: api_bodies, read: api_body },
];

fn text(bytes: &[u8]) -> Result<&str, Answer> {
    std::str::from_utf8(bytes).map_err(|_| Answer::Refused)
}

fn documents(world: &World) -> Vec<Vec<u8>> {
    let lived = world.lived.iter().map(|signed| signed.bytes.to_vec());
    world.documents.iter().cloned().chain(lived).collect()
}

fn payload(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(read) = Payload::read(bytes) else { return Ok(Answer::Refused) };
    let again = Payload::read(&read.to_bytes());
    require(again.as_ref() == Ok(&read), "it reads what it wrote as something else")?;
    Ok(Answer::Accepted)
}

fn json(bytes: &[u8]) -> Result<Answer, String> {
    match strict_json::check(bytes) {
        Ok(text) => {
            let again = strict_json::check(text.as_bytes());
            require(again.is_ok(), "it refuses what it gave back")?;
            Ok(Answer::Accepted)
        }
        Err(_) => Ok(Answer::Refused),
    }
}

fn signatures(_: &World) -> Vec<Vec<u8>> {
    let signature = sshsig::sign(&key(1), Namespace::Payload, b"text");
    let signer = key(1).public_key();
    let armor = sshsig::to_armor(&signer, Namespace::Payload, &signature);
    let line = sshsig::to_base64(&signer, Namespace::Payload, &signature);
    vec![armor.into_bytes(), line.into_bytes()]
}

fn signature(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = text(bytes) else { return Ok(Answer::Refused) };
    let read = sshsig::from_armor(text, Namespace::Payload)
        .or_else(|_| sshsig::from_base64(text, Namespace::Payload));
    let Ok(read) = read else { return Ok(Answer::Refused) };
    let armor = sshsig::to_armor(&read.signer, Namespace::Payload, &read.signature);
    let again = sshsig::from_armor(&armor, Namespace::Payload);
    require(again == Ok(read), "it reads what it wrote as something else")?;
    Ok(Answer::Accepted)
}

fn public_keys(_: &World) -> Vec<Vec<u8>> {
    let line = key(1).public_key().to_openssh();
    vec![format!("{line} me@here").into_bytes(), line.into_bytes()]
}

fn public_key(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = text(bytes) else { return Ok(Answer::Refused) };
    let Ok(read) = text.parse::<PublicKey>() else { return Ok(Answer::Refused) };
    require(read.to_openssh().parse() == Ok(read), "it reads what it wrote as something else")?;
    Ok(Answer::Accepted)
}

fn key_files(_: &World) -> Vec<Vec<u8>> {
    vec![key(1).to_openssh("me@here").as_bytes().to_vec()]
}

fn key_file(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = text(bytes) else { return Ok(Answer::Refused) };
    let Ok(read) = SecretKey::from_openssh(text) else { return Ok(Answer::Refused) };
    // It can be used for what it says.
    let signature = read.sign(b"text");
    require(read.public_key().verifies(b"text", &signature), "the halves do not fit together")?;
    Ok(Answer::Accepted)
}

fn genesis_documents(world: &World) -> Vec<Vec<u8>> {
    vec![world.genesis.to_bytes()]
}

fn genesis(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(read) = Genesis::read(bytes) else { return Ok(Answer::Refused) };
    let again = Genesis::read(&read.to_bytes());
    require(again.as_ref() == Ok(&read), "it reads what it wrote as something else")?;
    let _committee = read.committee();
    Ok(Answer::Accepted)
}

fn genesis_signatures(world: &World) -> Vec<Vec<u8>> {
    let operator = key(10);
    let signature = sshsig::sign(&operator, Namespace::Genesis, &world.genesis.to_bytes());
    let armor = sshsig::to_armor(&operator.public_key(), Namespace::Genesis, &signature);
    vec![armor.clone().into_bytes(), format!("{armor}\n{armor}").into_bytes()]
}

fn genesis_signature_file(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = text(bytes) else { return Ok(Answer::Refused) };
    let genesis = &world().genesis;
    answer(genesis.check_signatures(&genesis.to_bytes(), text))
}

/// The document on one line, its signature on the next one.
fn sessions(world: &World) -> Vec<Vec<u8>> {
    let document = SessionDocument {
        dagger: 1,
        cluster: world.cluster,
        host: HOST,
        key: key(1).public_key(),
        not_after_ms: NOW.plus_ms(60_000),
    };
    let (text, signature) = document.to_headers(&key(1));
    vec![format!("{text}\n{signature}").into_bytes()]
}

fn session(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = text(bytes) else { return Ok(Answer::Refused) };
    let (document, signature) = text.split_once('\n').unwrap_or((text, ""));
    let checked = session::check(document, signature, (world().cluster, HOST), NOW);
    if let Ok(signer) = &checked {
        require(*signer == key(1).public_key(), "another key passes")?;
    }
    answer(checked)
}

fn api_bodies(world: &World) -> Vec<Vec<u8>> {
    let import = ImageImport {
        path: "/srv/image.qcow2".to_owned(),
        digest: dagger_payload::id::ImageDigest([5; 32]),
    };
    let cluster = ClusterView {
        cluster: world.cluster,
        name: world.genesis.name.clone(),
        host: HOST,
        host_name: world.genesis.hosts[0].name.clone(),
        ledger_time: NOW,
        version: "0.1.0".to_owned(),
        protocol_max: dagger_payload::id::ProtocolVersion::KNOWN,
    };
    let problem = Problem {
        type_uri: "urn:dagger:problem:not_found".to_owned(),
        title: "nothing there".to_owned(),
        status: 404,
        code: "not_found".to_owned(),
        detail: "no such VM".to_owned(),
        rule: Some("only what is there is shown".to_owned()),
        advice: "look again".to_owned(),
        quorum: None,
    };
    let never = "plain data always writes";
    vec![
        serde_json::to_vec(&import).expect(never),
        serde_json::to_vec(&cluster).expect(never),
        serde_json::to_vec(&problem).expect(never),
    ]
}

fn api_body(bytes: &[u8]) -> Result<Answer, String> {
    let read = serde_json::from_slice::<ImageImport>(bytes).is_ok()
        || serde_json::from_slice::<ClusterView>(bytes).is_ok()
        || serde_json::from_slice::<Problem>(bytes).is_ok();
    Ok(if read { Answer::Accepted } else { Answer::Refused })
}
