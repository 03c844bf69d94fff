//! What an account has used, as of a commit: the releases that this host has, added up as
//! everybody adds them up ([`dagger_api::bill`]). Called by the API.

use dagger_api::UsageView;
use dagger_api::bill::Bill;
use dagger_payload::id::{AccountId, CommitIndex};

use super::archive::ArchiveError;
use super::look::LookBack;
use crate::limits::USAGE_COMMITS_TOGETHER_MAX;

impl LookBack {
    /// What `account` has used up to `commit`, or up to the newest folded one; `None` when that
    /// commit is not folded yet.
    ///
    /// Only the commits that changed something of the account are read: a bill takes nothing else
    /// from the others than the time of the last one.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn usage(
        &self,
        account: &AccountId,
        commit: Option<CommitIndex>,
    ) -> Result<Option<UsageView>, ArchiveError> {
        let upto = commit.unwrap_or(self.until());
        if upto > self.until() {
            return Ok(None);
        }
        let hole = |_| ArchiveError::Damaged("a VM that was changed is missing");
        let mut bill = Bill::new(*account);
        let mut after = CommitIndex(0);
        'all: loop {
            let of = |after| {
                self.read(|past| past.commits_of(account, after, USAGE_COMMITS_TOGETHER_MAX))
            };
            let commits = of(after)?;
            if commits.is_empty() {
                break;
            }
            for index in commits {
                if index > upto {
                    break 'all;
                }
                let before = CommitIndex(index.0.saturating_sub(1));
                let releases = self.read(|past| past.releases_after(before, 1, usize::MAX))?;
                let release = releases.first().filter(|release| release.end.index == index);
                let missing = ArchiveError::Damaged("an account's commit is missing");
                bill.take(release.ok_or(missing)?).map_err(hole)?;
                after = index;
            }
        }
        let last = self.read(|past| past.commit_with_content(upto))?;
        if let Some(last) = last.filter(|last| last.end.index > after) {
            bill.take(&last).map_err(hole)?;
        }
        Ok(Some(self.model(|model| bill.read(|host| model.host_name(host).cloned()))))
    }
}
