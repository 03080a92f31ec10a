// SPDX-License-Identifier: Apache-2.0
//! Errors of the Kubernetes client, for people. Pure.

use std::error::Error;

use kube::core::Status;

/// An error and its causes on one line; of an answer of the API server, what it says.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(status) = status(error) {
            return answer(status);
        }
        let said = error.to_string();
        if !text.contains(&said) {
            text += ": ";
            text += &said;
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

fn status<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    error.downcast_ref().or_else(|| error.downcast_ref::<Box<Status>>().map(Box::as_ref))
}

fn answer(Status { code, reason, message, .. }: &Status) -> String {
    let text = match message.starts_with(reason) {
        true => format!("{code} {message}"),
        false => format!("{code} {reason}: {message}"),
    };
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use kube::runtime::watcher;

    use super::*;

    #[test]
    fn of_an_answer_its_code_reason_and_message_are_told() {
        let refused = || Box::new(Status::failure("Unauthorized", "Unauthorized").with_code(401));
        assert_eq!(chain(&kube::Error::Api(refused())), "401 Unauthorized");
        assert_eq!(
            chain(&watcher::Error::InitialListFailed(kube::Error::Api(refused()))),
            "401 Unauthorized"
        );
        let gone = Status::failure("too old resource version: 1 (5)", "Expired").with_code(410);
        assert_eq!(
            chain(&watcher::Error::WatchError(Box::new(gone))),
            "410 Expired: too old resource version: 1 (5)"
        );
    }

    #[test]
    fn of_another_error_each_cause_is_told_once() {
        let error = kube::Error::Service(Box::new(io::Error::other("no route\nto host")));
        let told = chain(&watcher::Error::WatchStartFailed(error));
        assert_eq!(told, "failed to start watching object: ServiceError: no route to host");
    }
}
