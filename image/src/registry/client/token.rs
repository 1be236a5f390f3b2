//! Tokens for the distribution protocol: requested from the realm that a challenge names.

use super::fault::{Fault, fault_of};
use super::{Endpoint, PRODUCT, Registry};
use crate::Auth;
use crate::registry::auth;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

/// Maximum size of a token response. Real ones have a few KiB.
const MAX_TOKEN: u64 = 1 << 20;

impl Registry {
    /// Requests a token from the realm, with the user's credentials if there are any.
    pub(super) async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<HeaderValue, Fault> {
        #[derive(Deserialize)]
        struct TokenResponse {
            token: Option<String>,
            access_token: Option<String>,
        }
        let uri: Uri = realm.parse().map_err(|_| Fault::Final("token realm is not a URL".to_owned()))?;
        let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || host.is_empty() || host.contains('@') {
            return Err(Fault::Final("token realm is not a URL".to_owned()));
        }
        let own_scope = format!("repository:{}:pull", self.reference.repository());
        let scope = scope.unwrap_or(&own_scope);
        let auth = endpoint.auth.as_deref();
        if endpoint.host.scheme == "https" && uri.scheme_str() == Some("http") && auth.is_some() {
            return Err(Fault::Final(format!(
                "token realm {host} is http: it would receive the credentials unencrypted"
            )));
        }
        let request = token_request(realm, uri, service, scope, auth);
        let mut request = request.map_err(|_| Fault::Final("token realm is not a URL".to_owned()))?;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        let response = self.send(&endpoint.http, request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Fault::Unauthorized),
            status => return Err(fault_of(&response, status)),
        }
        let bytes = self.read_all(response, MAX_TOKEN).await?;
        let unusable = || Fault::Final(format!("token realm {host} sent no valid token"));
        let found: TokenResponse = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        let token = found.token.or(found.access_token).filter(|token| !token.is_empty());
        token.and_then(|token| auth::bearer(&token)).ok_or_else(unusable)
    }
}

/// The request for a token. A refresh token is exchanged by POST (OAuth2); a password is sent with GET.
fn token_request(
    realm: &str,
    uri: Uri,
    service: Option<&str>,
    scope: &str,
    auth: Option<&Auth>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let password = auth.and_then(auth::user_and_password);
    let mut pairs = vec![("scope", scope)];
    pairs.extend(service.map(|service| ("service", service)));
    let identity = auth.map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
    if let Some(identity) = identity {
        pairs.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", identity),
            ("client_id", "copepod"),
        ]);
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(auth::form(&pairs).into()))
    } else {
        pairs.extend(password.iter().map(|(user, _)| ("account", user.as_str())));
        let joint = if uri.query().is_some() { '&' } else { '?' };
        let mut request = Request::builder().uri(format!("{realm}{joint}{}", auth::form(&pairs)));
        if let Some(basic) = password.as_ref().and_then(|(user, password)| auth::basic(user, password)) {
            request = request.header(AUTHORIZATION, basic);
        }
        request.body(Full::default())
    }
}
