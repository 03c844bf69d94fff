//! Taking image files into the store: only over the Unix socket, only what is registered, only what
//! has the digest.

use dagger_api::{Held, ImageImport, ImageView};
use dagger_payload::id::{Generation, ImageDigest};
use dagger_payload::kind::ImageFormat;
use dagger_payload::object::{Cause, Effect, Image, ImageStatus};
use dagger_payload::release::Verdict;
use http_body_util::Full;
use hyper::StatusCode;

use crate::agent::Agent;
use crate::http::{Answered, Way};
use crate::support::{Chronicle, key, vm_create};

async fn import(way: &Way, import: &ImageImport) -> Answered {
    let body = serde_json::to_vec(import).expect("plain data");
    let request = way.request("POST", "/v1/images").body(Full::new(body.into()));
    way.ask(request.expect("a request")).await
}

/// Registers an image with this digest.
async fn register(agent: &Agent, digest: ImageDigest, size_bytes: u64) {
    let mut chronicle = Chronicle::new(&agent.world);
    let publisher = key(1);
    // The fake judges nothing: any payload may carry the effect.
    let payload = agent.world.sign(&publisher, vm_create("any"));
    let image = Image {
        name: "op1/small".parse().expect("a name"),
        publisher: publisher.public_key(),
        digest,
        format: ImageFormat::Raw,
        size_bytes,
        virtual_size_bytes: size_bytes,
        sources: Vec::new(),
        status: ImageStatus::Offered,
        generation: Generation(1),
        cause: Cause { digest: payload.digest(), position: chronicle.next_position() },
    };
    let effects = vec![Effect::Image(Box::new(image))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_registered_image_with_the_right_digest_is_taken_and_only_over_the_unix_socket() {
    let agent = Agent::start().await;
    let path = agent.directory.path().join("small.img");
    std::fs::write(&path, vec![0x5a; 4096]).expect("writable");
    let digest = dagger_images::store::digest_of(&path).expect("readable").expect("small");
    register(&agent, digest, 4096).await;
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::No);

    let wanted = |path: &std::path::Path| ImageImport { path: path.display().to_string(), digest };
    let refused = import(&agent.tcp, &wanted(&path)).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.problem().code, "unix_socket_only");
    let other = agent.directory.path().join("other.img");
    std::fs::write(&other, vec![0x5b; 4096]).expect("writable");
    for path in [other.as_path(), agent.directory.path(), &agent.directory.path().join("none")] {
        let refused = import(&agent.unix, &wanted(path)).await;
        assert_eq!(refused.problem().code, "image_refused", "{}", path.display());
    }
    let relative = import(&agent.unix, &wanted(std::path::Path::new("small.img"))).await;
    assert_eq!(relative.problem().code, "request_malformed");
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::No);

    let taken = import(&agent.unix, &wanted(&path)).await;
    assert_eq!(taken.json::<ImageView>().held, Held::Yes);
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::Yes);
}
