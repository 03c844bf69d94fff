//! `image.*` in the model.

use dagger_payload::id::{AccountId, Generation, ImageDigest};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Body, ImageFormat, ImageRegister, ImageRetire};
use dagger_payload::name::ImageName;
use dagger_payload::object::{Effect, Image, ImageStatus};
use dagger_payload::refusal::RefusalCode;

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling, require_generation};
use super::volumes::draw_expected;

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "image.register", weight: 5, draw: draw_register, judge: judge_register },
    Kind { name: "image.retire", weight: 2, draw: draw_retire, judge: judge_retire },
];

/// A name that `who` may give, mostly; else one of somebody else.
fn draw_name(scene: &Scene, who: Person, random: &mut Random) -> ImageName {
    let called = called(&scene.model, &scene.key(who));
    let publisher = match called {
        Ok(called) if !random.happens(150) => called,
        _ => random.of(&["op0", "op1", "dev"]).to_owned(),
    };
    format!("{publisher}/{}", random.of(&["one", "two", "kernel", "initrd"]))
        .parse()
        .expect("an image name")
}

fn draw_publisher(scene: &Scene, random: &mut Random) -> Person {
    match random.below(10) {
        0..5 => scene.operator_mostly(random),
        5..9 => scene.acting(random),
        _ => Person::any(random),
    }
}

fn draw_register(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let who = draw_publisher(scene, random);
    let format = random.of(&[
        ImageFormat::Qcow2,
        ImageFormat::Qcow2,
        ImageFormat::Raw,
        ImageFormat::Kernel,
        ImageFormat::Initrd,
    ]);
    // What is no disk has one size.
    let is_disk = matches!(format, ImageFormat::Qcow2 | ImageFormat::Raw);
    let size_bytes = if is_disk { 1 << 20 } else { random.of(&[1 << 20, 1 << 26, 1 << 27]) };
    let body = ImageRegister {
        name: draw_name(scene, who, random),
        digest: ImageDigest([u8::try_from(random.below(3)).expect("few"); 32]),
        format,
        size_bytes,
        virtual_size_bytes: match is_disk {
            true => random.of(&[1 << 26, 1 << 26, 1 << 27]),
            false => size_bytes,
        },
        sources: Vec::new(),
    };
    (who, Body::ImageRegister(body))
}

fn judge_register(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, ImageRegister);
    let publisher = publisher(model, asked)?;
    if let Some(account) = model.accounts.iter().find(|account| account.key == publisher)
        && model.operator(asked.signer).is_none()
        && !model.is_granted(account)
    {
        return Err(RefusalCode::AccountUnknown);
    }
    if !body.name.as_str().starts_with(&format!("{}/", called(model, asked.signer)?)) {
        return Err(RefusalCode::NotAuthorized);
    }
    let old = model.images.iter().find(|image| image.name == body.name);
    if old.is_some_and(|old| old.publisher != publisher) {
        return Err(RefusalCode::NameTaken);
    }
    let own = model.images.iter().filter(|image| image.publisher == publisher).count();
    let opened_by = |key: &PublicKey| {
        let account = model.accounts.iter().find(|account| account.key == *key);
        account.map(|account| account.opened_by)
    };
    let as_account = opened_by(&publisher).filter(|_| model.operator(asked.signer).is_none());
    let together = model.images.iter().filter(|image| {
        let is_of_account = image.name.publisher() == AccountId::of(&image.publisher).to_string();
        is_of_account && opened_by(&image.publisher) == as_account
    });
    let is_many = as_account.is_some() && own >= 2 && together.count() >= 16_384;
    if old.is_none() && (own >= 1024 || is_many) {
        return Err(RefusalCode::LimitExceeded);
    }
    let mut image = Image {
        name: body.name.clone(),
        publisher,
        digest: body.digest,
        format: body.format,
        size_bytes: body.size_bytes,
        virtual_size_bytes: body.virtual_size_bytes,
        sources: body.sources.clone(),
        generation: old.map_or(Generation(0), |old| old.generation),
        cause: old.map_or(asked.cause, |old| old.cause),
        status: ImageStatus::Offered,
    };
    if old == Some(&image) {
        return Err(RefusalCode::AlreadyExists);
    }
    image.generation = Generation(image.generation.0 + 1);
    image.cause = asked.cause;
    Ok(vec![Effect::Image(Box::new(image))])
}

/// An operator publishes under his name, an account under its id.
fn called(model: &Model, signer: &PublicKey) -> Result<String, RefusalCode> {
    match model.operator(signer) {
        Some(id) => {
            let own = model.operators.iter().find(|own| own.id == id).expect("he signs");
            Ok(own.name.to_string())
        }
        None => model.acting(signer).map(|account| account.id.to_string()),
    }
}

/// An operator and an account publish under their first key.
fn publisher(model: &Model, asked: &Asked<'_>) -> Result<PublicKey, RefusalCode> {
    match model.operator(asked.signer) {
        Some(id) => {
            let own = model.operators.iter().find(|own| own.id == id).expect("he signs");
            Ok(own.first_key.clone())
        }
        None => model.acting(asked.signer).map(|account| account.key.clone()),
    }
}

fn draw_retire(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let images = &scene.model.images;
    if images.is_empty() || random.happens(300) {
        let who = draw_publisher(scene, random);
        let body = ImageRetire { name: draw_name(scene, who, random), expected_generation: None };
        return (who, Body::ImageRetire(body));
    }
    let image = &images[random.index(images.len())];
    let account = scene.model.accounts.iter().find(|account| account.key == image.publisher);
    let who = match account {
        Some(account) => scene.acting_for(account, random),
        None => {
            let mut operators = scene.model.operators.iter();
            let own = operators.find(|own| own.first_key == image.publisher);
            scene.who(&own.expect("a publisher").key).expect("everybody's key is known")
        }
    };
    let expected_generation = draw_expected(Some(image.generation), random);
    let name = image.name.clone();
    (who, Body::ImageRetire(ImageRetire { name, expected_generation }))
}

fn judge_retire(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, ImageRetire);
    let image = model.images.iter().find(|image| image.name == body.name);
    let mut image = image.ok_or(RefusalCode::NotFound)?.clone();
    if image.publisher != publisher(model, asked)? {
        return Err(RefusalCode::NotAuthorized);
    }
    require_generation(body.expected_generation, image.generation)?;
    if image.status == ImageStatus::Retired {
        return Ok(Vec::new());
    }
    image.status = ImageStatus::Retired;
    image.generation = Generation(image.generation.0 + 1);
    image.cause = asked.cause;
    Ok(vec![Effect::Image(Box::new(image))])
}
