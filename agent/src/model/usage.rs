//! What an account has used, as of a commit: the releases that this host has, added up as
//! everybody adds them up ([`dagger_api::bill`]). Called by the API.

use dagger_api::UsageView;
use dagger_api::bill::Bill;
use dagger_payload::id::{AccountId, CommitIndex};

use super::Model;

impl Model {
    /// What `account` has used up to `commit`, or up to the newest folded one; `None` when that
    /// commit is not folded yet.
    pub fn usage(&self, account: &AccountId, commit: Option<CommitIndex>) -> Option<UsageView> {
        if commit.is_some_and(|commit| commit > self.judged()) {
            return None;
        }
        let mut bill = Bill::new(*account);
        let upto = |index: CommitIndex| commit.is_none_or(|commit| index <= commit);
        let releases = self.log.iter().take_while(|release| upto(release.end.index));
        releases.for_each(|release| bill.take(release));
        Some(bill.read(|host| self.host_name(host).cloned()))
    }
}
