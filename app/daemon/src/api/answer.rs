//! Bodies and errors: everything that goes wrong is told as a `Problem`.

use axum::{
    Json,
    body::Bytes as Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use plimsoll_api::http::{MAX_BODY, Problem};
use plimsoll_model::VmName;
use serde::de::DeserializeOwned;

use crate::ops::Refusal;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(Problem { error: self.message })).into_response()
    }
}

/// A JSON body of at most [`MAX_BODY`] bytes, whatever its content type says.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Body::from_request(request, state).await.map_err(refuse_body)?;
        match serde_json::from_slice(&body) {
            Ok(value) => Ok(Self(value)),
            Err(error) if error.is_data() => {
                Err(Refusal::bad_request(format!("the request makes no sense: {error}")))
            }
            Err(error) => Err(Refusal::bad_request(format!("the request is no JSON: {error}"))),
        }
    }
}

fn refuse_body(rejection: BytesRejection) -> Refusal {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Refusal { status: 413, message: format!("the request is longer than {MAX_BODY} bytes") }
    } else {
        Refusal::bad_request(format!("the request could not be read: {rejection}"))
    }
}

/// The VM named in the path.
pub(crate) struct Named(pub(crate) VmName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| Refusal::bad_request(format!("the path cannot be read: {e}")))?;
        VmName::new(&text).map(Self).map_err(|e| Refusal::bad_request(e.to_string()))
    }
}

/// The part of the address after the question mark.
pub(crate) struct Args<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Args<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let refuse = |e| Refusal::bad_request(format!("the query makes no sense: {e}"));
        Query::<T>::from_request_parts(parts, state).await.map(|Query(args)| Self(args)).map_err(refuse)
    }
}
