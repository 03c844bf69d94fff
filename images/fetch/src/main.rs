//! The one-shot helper `dagger-fetch`: takes one request, fetches, says how it went, and ends.
//! Decides nothing else.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Parser;
use dagger_fetch::conversation::{self, Teller};
use dagger_fetch::fetch::fetch;
use dagger_images::fetch::{FetchNews, FetchProblem};

/// Fetches one image for dagger-agent, which has no network: by https, or from another host of the
/// cluster, resuming what is kept, and verified while it streams.
///
/// Standard input is a Unix socket: one line of JSON with an open file comes in, lines of JSON go
/// out. It is started by dagger-fetch.socket, or by the agent itself where systemd does not run the
/// host; there is nothing to do with it by hand. Private, link-local and loopback addresses are
/// asked only where the request lists them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 it was said how it ended; 1 there was nobody to say it to; 2 wrong usage."
)]
struct Arguments {}

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dagger-fetch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    let mut stream = conversation::standard_input()?;
    let request = conversation::take_request(&mut stream);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(answer(stream, request))
}

async fn answer(
    stream: UnixStream,
    request: Result<(dagger_images::fetch::FetchRequest, std::fs::File), FetchProblem>,
) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    let (asker, teller) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let mut teller = Teller::new(teller);
    let (request, file) = match request {
        Ok(request) => request,
        Err(problem) => {
            teller.tell(&FetchNews::Failed { problem }).await;
            return Ok(());
        }
    };
    let fetched = tokio::select! {
        fetched = fetch(&request, file, &mut teller) => fetched,
        () = conversation::gone(asker) => return Err(std::io::ErrorKind::BrokenPipe.into()),
    };
    let end = match fetched {
        Ok(bytes) => FetchNews::Done { bytes },
        Err(problem) => {
            if problem.code.is_of_the_file() {
                eprintln!("dagger-fetch: {problem}");
            }
            FetchNews::Failed { problem }
        }
    };
    teller.tell(&end).await;
    Ok(())
}
